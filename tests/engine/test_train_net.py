"""tools/train_net.py: train, stop, resume, evaluate, several processes, mistakes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.configs import ROOT
from helpers.training import ENVIRONMENT, assert_same_weights, evaluated, metrics, run
from PIL import Image

from dgnet_cli.train_net import main as train_net
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import load_predictor

NAMES = ["apple", "fig", "pear"]
Stopped = tuple[Path, list[str], subprocess.CompletedProcess[str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def trained(detector: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """OUTPUT_DIR after 8 passes, and what --json wrote."""
    output = tmp_path_factory.mktemp("trained")
    train_net(
        [*detector, "--json", str(output / "results.json"), "SOLVER.EPOCHS", "8",
         "TEST.EVAL_PERIOD", "6", "SOLVER.CHECKPOINT_PERIOD", "4", "OUTPUT_DIR", str(output)]
    )  # fmt: skip
    return output, json.loads((output / "results.json").read_text())


def test_classes_and_schedule_come_from_the_data(trained: tuple[Path, dict]) -> None:
    output, results = trained
    cfg = yaml.safe_load((output / "config.yaml").read_text())
    assert cfg["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 3
    # Of 7 images 6 have objects; a process takes 2, an eighth of the recipe's 16.
    solver = {key: cfg["SOLVER"][key] for key in ("IMS_PER_BATCH", "MAX_ITER", "EPOCHS", "BASE_LR")}
    assert solver == {"IMS_PER_BATCH": 2, "MAX_ITER": 24, "EPOCHS": 8, "BASE_LR": 0.0025}
    log = (output / "log.txt").read_text()
    assert "classes        3: apple, fig, pear" in log
    assert "Rank of current process: 0" in log  # what was logged before the folder was opened
    for name in ("model_final", "model_best"):
        checkpoint = load(output / f"{name}.pth")
        assert checkpoint["class_names"] == NAMES
        assert checkpoint["model"]["roi_heads.box_predictor.cls_score.bias"].shape == (4,)
    assert {"AP-apple", "AP-fig", "AP-pear"} <= results["bbox"].keys()


def test_a_short_run_keeps_few_checkpoints_and_every_evaluation(trained: tuple[Path, dict]) -> None:
    output, results = trained
    assert {path.name for path in output.glob("*.pth")} == {
        "model_0000015.pth", "model_0000019.pth", "model_0000023.pth", "model_best.pth",
        "model_final.pth",
    }  # fmt: skip
    lines = metrics(output)
    assert evaluated(output, "bbox/AP") == [5, 11, 17, 24]
    for figure in ("mean_weight", "open_edges", "absent_nodes", "alpha_std"):
        assert any(f"wiring/res3.0/{figure}" in line for line in lines)
    assert 0 < lines[-1]["wiring/alpha_std"] == results["wiring"]["alpha_std"] < 0.5
    with Image.open(output / "training.png") as picture:
        assert picture.width > 1000


def test_evaluation_leaves_the_config_alone(
    trained: tuple[Path, dict], detector: list[str], tmp_path: Path
) -> None:
    output, results = trained
    before = (output / "config.yaml").read_bytes()
    train_net(
        ["--config-file", str(output / "config.yaml"), "--eval-only", "--json",
         str(tmp_path / "metrics.json"), "MODEL.WEIGHTS", str(output / "model_final.pth"),
         "MODEL.RPN.POST_NMS_TOPK_TEST", "19"]
    )  # fmt: skip
    assert (output / "config.yaml").read_bytes() == before
    assert json.loads((tmp_path / "metrics.json").read_text()).keys() == results.keys()


def test_a_refused_run_writes_nothing(
    trained: tuple[Path, dict],
    detector: list[str],
    write_fruit: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    output, _ = trained
    before = contents(output)
    shuffled = {1: "fig", 2: "apple", 3: "pear"}
    data = write_fruit(tmp_path, "train", shuffled) + write_fruit(tmp_path, "val", shuffled)
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    wider = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"]
    other_order = "trained for the classes apple, fig, pear, but the data have fig, apple, pear"
    for message, *arguments in (
        (other_order, "--resume", *data),
        (other_order, "--eval-only", *data, *weights),
        (r"model_\w+\.pth", "--resume", *wider),
        ("SOLVER.AMP.ENABLED", "SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            train_net([*detector, *arguments, "OUTPUT_DIR", str(output)])
        assert contents(output) == before
    absent = tmp_path / "absent"
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        train_net([*detector, "OUTPUT_DIR", str(absent), "MODEL.WEIGHTS", "nowhere.pth"])
    assert not absent.exists()


def test_inference_knows_the_classes_without_the_data(
    trained: tuple[Path, dict], detector: list[str]
) -> None:
    _, config_file, *opts = detector
    weights = str(trained[0] / "model_final.pth")
    predictor = load_predictor(load_cfg(config_file, [*opts[8:], "MODEL.WEIGHTS", weights]))
    assert predictor.class_names == NAMES
    assert predictor.model.roi_heads.num_classes == 3


@pytest.fixture(scope="module")
def stopped(detector: list[str], tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """OUTPUT_DIR, the command line but for its length, and the end, of a training that SIGTERM
    stopped after its first checkpoint."""
    output = tmp_path_factory.mktemp("stopped")
    command = [
        *detector, "OUTPUT_DIR", str(output), "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.STEPS", "()",
        "SOLVER.BASE_LR", "0.001", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "tools/train_net.py", *command, "100000"],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (output / "last_checkpoint").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=240)
    return output, command, subprocess.CompletedProcess([], process.returncode, printed, errors)


def test_an_interruption_says_what_is_saved(stopped: Stopped) -> None:
    output, _, ended = stopped
    last = output / (output / "last_checkpoint").read_text()
    assert ended.returncode == 143
    *others, line = ended.stderr.splitlines()
    assert line == f"interrupted: {last} is saved; to go on, add --resume"
    # Nothing else but what the data check noted: no warning of another library.
    assert all("has no box" in other for other in others), others


def test_a_stopped_training_goes_on(stopped: Stopped) -> None:
    output, command, _ = stopped
    last = load(output / (output / "last_checkpoint").read_text())
    total = last["iteration"] + 3
    train_net([*command, str(total), "--resume"])
    final = load(output / "model_final.pth")
    assert final["iteration"] == total - 1
    assert metrics(output)[-1]["iteration"] == total
    before, after = (
        checkpoint["trainer"]["optimizer"]["state"][0]["momentum_buffer"]
        for checkpoint in (last, final)
    )
    assert before.abs().sum() > 0
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trainer: trainer["optimizer"]["param_groups"].pop(), "other groups of parameters"),
        # As Detectron2's DefaultTrainer has it.
        (
            lambda trainer: trainer.update(_trainer={"optimizer": trainer.pop("optimizer")}),
            "another trainer saved it, without optimizer: name it as MODEL.WEIGHTS",
        ),
        (None, "holds weights alone, without a trainer's state: name it as"),
    ],
)
def test_a_checkpoint_of_another_trainer_is_refused_in_one_line(
    change: Callable[[dict], Any] | None, message: str, stopped: Stopped
) -> None:
    output, command, _ = stopped
    path = output / (output / "last_checkpoint").read_text()
    before = path.read_bytes()
    checkpoint = load(path)
    if change:
        change(checkpoint["trainer"])
    else:
        del checkpoint["trainer"]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=message):
        train_net([*command, "99", "--resume"])
    path.write_bytes(before)


def test_a_training_that_diverges_names_the_learning_rate(
    detector: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"SOLVER.BASE_LR 1e\+09, with a batch of 2: .* NaN"):
        train_net([*detector, "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", "1e9"])
    assert "Traceback" not in "".join(capfd.readouterr())


def test_two_processes_evaluate_together(detector: list[str], tmp_path: Path) -> None:
    """And leave their process group, without which they abort in about one run of three."""
    run(
        "tools/train_net.py", *detector, "--num-gpus", "2", "SOLVER.MAX_ITER", "2",
        "TEST.EVAL_PERIOD", "1", "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)",
        "OUTPUT_DIR", str(tmp_path),
    )  # fmt: skip
    assert evaluated(tmp_path, "bbox/AP50") == [0, 2]
    assert evaluated(tmp_path, "bbox_TTA/AP50") == [2]


def test_a_new_training_sets_the_metrics_of_an_earlier_one_aside(
    detector: list[str], tmp_path: Path
) -> None:
    words = [*detector, "OUTPUT_DIR", str(tmp_path), "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER"]
    train_net([*words, "3"])
    before = (tmp_path / "metrics.json").read_bytes()
    train_net([*words, "2"])
    assert (tmp_path / "earlier_1/metrics.json").read_bytes() == before
    assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2]
    assert "of an earlier training" in (tmp_path / "log.txt").read_text()


def test_precise_bn_of_a_resumed_training_is_the_same(detector: list[str], tmp_path: Path) -> None:
    words = [
        *detector, "MODEL.RESNETS.NORM", "BN", "TEST.PRECISE_BN.ENABLED", "True",
        "TEST.PRECISE_BN.NUM_ITER", "2", "TEST.EVAL_PERIOD", "2", "SOLVER.STEPS", "()",
        "SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.001",
    ]  # fmt: skip
    whole, resumed = (["OUTPUT_DIR", str(tmp_path / name)] for name in ("whole", "resumed"))
    train_net([*words, *whole, "SOLVER.MAX_ITER", "4"])
    train_net([*words, *resumed, "SOLVER.MAX_ITER", "2"])
    train_net([*words, *resumed, "SOLVER.MAX_ITER", "4", "--resume"])
    assert_same_weights(whole[1], resumed[1])
    log = (tmp_path / "whole/log.txt").read_text()
    assert log.count("Running precise-BN for 2 iterations") == 2


def test_a_mistake_that_another_process_finds_is_one_line(
    detector: list[str], tmp_path: Path
) -> None:
    result = run(
        "tools/train_net.py", *detector, "--num-gpus", "2", "OUTPUT_DIR", str(tmp_path / "output"),
        "MODEL.DGNET.WIRING", "papr", expected=1,
    )  # fmt: skip
    assert "Traceback" not in result.stderr + result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: MODEL.DGNET.WIRING 'papr'")
    assert not (tmp_path / "output").exists()


def test_a_bug_in_a_backbone_of_ones_own_keeps_its_traceback(
    detector: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is registered by a module that --import names."""
    (tmp_path / "own_backbone.py").write_text(
        "from detectron2.modeling import BACKBONE_REGISTRY\n"
        "@BACKBONE_REGISTRY.register()\n"
        "def build_own(cfg, input_shape):\n"
        "    return {}['a bug']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--import", "own_backbone", "MODEL.BACKBONE.NAME", "build_own"]
    with pytest.raises(KeyError, match="a bug"):
        train_net([*detector, *words, "OUTPUT_DIR", str(tmp_path / "output")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL.WEIGHTS", "missing.pth"], r"missing\.pth"),
        (["DATASETS.TRAIN", "('no_such_set',)"], r"DATASETS\.TRAIN .*no_such_set"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], r"MODEL\.ROI_HEADS\.NUM_CLASSES 80: .* 3 cat"),
        (["MODEL.RESNETS.NORM", "foo"], r"MODEL\.RESNETS\.NORM 'foo': choose from .*BN"),
        (["MODEL.RPN.HEAD_NAME", "foo"], r"MODEL\.RPN\.HEAD_NAME 'foo': choose from Stand"),
        (["MODEL.ROI_BOX_HEAD.NAME", ""], r"MODEL\.ROI_BOX_HEAD\.NAME '': choose from Fast"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"], r"SIZES .*: give one list .*or 5 lists"),
        (
            ["MODEL.RPN.IN_FEATURES", "['p2', 'p7']"],
            r"RPN\.IN_FEATURES .*p7.*: .*p2, p3, p4, p5, p6",
        ),
        (
            ["MODEL.FPN.IN_FEATURES", "['res2', 'res9']"],
            r"FPN\.IN_FEATURES .*res9.*choose from res2",
        ),
        (["MODEL.FPN.IN_FEATURES", "[]"], r"MODEL\.FPN\.IN_FEATURES: empty"),
        (["SOLVER.IMS_PER_BATCH", "0"], r"SOLVER\.IMS_PER_BATCH 0: give at least 1"),
        (["OUTPUT_DIR", __file__], r"test_train_net\.py: a file stands where a folder is needed"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_are_named(
    detector: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_net([*detector, "OUTPUT_DIR", str(tmp_path), *arguments])
