"""tools/train_net.py from the command line: train, kill, resume, evaluate, processes, errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from PIL import Image

from configs import ROOT
from dgnet_det.config import load_cfg
from dgnet_det.engine.trainer import Trainer

CONFIG = "configs/Tree-Crowns/faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml"
SMALL = [
    "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001", "SOLVER.WARMUP_ITERS", "2",
    "TEST.EVAL_PERIOD", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tree crowns in the real layout: four noise tiles a split, two boxes each."""
    root = tmp_path_factory.mktemp("datasets")
    folder = root / "tree_crowns"
    (folder / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / split).mkdir()
        images, annotations = [], []
        for i in range(4):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
            for x in (4, 34):
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": i, "category_id": 1,
                        "bbox": [x, 10, 24, 30], "area": 720, "iscrowd": 0,
                    }
                )  # fmt: skip
        coco = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "tree"}],
        }
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    return root


def overrides_of(datasets: Path) -> list[str]:
    folder = datasets / "tree_crowns"
    return [
        word
        for key, split in (("TRAIN", "train"), ("VAL", "val"))
        for word in (
            f"DATASETS.{key}_JSON", str(folder / f"annotations/{split}.json"),
            f"DATASETS.{key}_IMAGES", str(folder / split),
        )
    ]  # fmt: skip


def command(datasets: Path, output: Path, *arguments: str) -> list[str]:
    """tools/train_net.py with the small model; its options go before the KEY VALUE pairs."""
    options = [a for a in arguments if a.startswith("--") or "=" in a]
    return [
        sys.executable, "tools/train_net.py", "--config-file", CONFIG, *options, *SMALL,
        *overrides_of(datasets), "OUTPUT_DIR", str(output),
        *(a for a in arguments if a not in options),
    ]  # fmt: skip


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(datasets: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(datasets, output, *arguments),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_kill_resume_and_evaluate(datasets: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    schedule = ["SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.STEPS", "(20,)", "SOLVER.MAX_ITER"]
    process = subprocess.Popen(
        command(datasets, killed, *schedule, "100000"),
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (killed / "last_checkpoint").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(
        killed / (killed / "last_checkpoint").read_text(), weights_only=True
    )["iteration"]  # fmt: skip
    total = reached + 1 + 21
    result = run(datasets, killed, "--resume", *schedule, str(total))
    assert result.returncode == 0, result.stderr
    assert f"Starting training from iteration {reached + 1}" in result.stdout
    final = torch.load(killed / "model_final.pth", weights_only=True)
    assert final["iteration"] == total - 1
    logged = [json.loads(line) for line in (killed / "metrics.json").read_text().splitlines()]
    assert any("wiring/res2.0/open_edges" in line for line in logged)
    last = torch.load(killed / f"model_{reached:07d}.pth", weights_only=True)
    buffers = [
        state["trainer"]["_trainer"]["optimizer"]["state"][0]["momentum_buffer"]
        for state in (last, final)
    ]
    assert buffers[0].abs().sum() > 0
    assert not torch.equal(*buffers)

    metrics = tmp_path / "metrics.json"
    final_path = str(killed / "model_final.pth")
    evaluated = run(
        datasets, tmp_path / "eval", "--eval-only", f"--json={metrics}", "MODEL.WEIGHTS", final_path
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "AP50" in json.loads(metrics.read_text())["bbox"]


def test_two_processes_train_one_model(datasets: Path, tmp_path: Path) -> None:
    """Each process trains on images of its own; averaged gradients keep their weights equal."""
    opts = [*SMALL, *overrides_of(datasets)]
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from detectron2.engine import launch\n"
        "from test_train_net import compare_processes\n"
        f"launch(compare_processes, 2, dist_url='auto', args={(CONFIG, opts, str(tmp_path))})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("equal weights") == 2


def compare_processes(config: str, opts: list[str], output: str) -> None:
    """Train two iterations and compare with the other process what came of it."""
    schedule = [
        "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(5,)", "SOLVER.REFERENCE_WORLD_SIZE", "0",
        "TEST.EVAL_PERIOD", "9", "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)",
    ]  # fmt: skip
    cfg = load_cfg(config, [*opts, *schedule, "OUTPUT_DIR", output])
    seed_all_rng(comm.get_rank())
    trainer = Trainer(cfg)
    evaluations = [hook._period for hook in trainer._hooks if isinstance(hook, EvalHook)]
    assert comm.all_gather(evaluations) == [[9, 0], [9, 0]]  # without and with augmentation
    images: list[str] = []
    trainer._trainer.model.register_forward_pre_hook(
        lambda module, args: images.extend(image["file_name"] for image in args[0])
    )
    start = float(sum(p.double().abs().sum() for p in trainer.model.parameters()))
    trainer.train()
    end = float(sum(p.double().abs().sum() for p in trainer.model.parameters()))
    seen, starts, ends = (comm.all_gather(value) for value in (images, start, end))
    assert seen[0] != seen[1], seen
    assert starts[0] == starts[1], starts
    assert ends[0] == ends[1] != start, ends
    print("equal weights", flush=True)


def test_the_command_line_starts_two_processes(datasets: Path, tmp_path: Path) -> None:
    result = run(
        datasets, tmp_path, "--num-gpus=2", "SOLVER.MAX_ITER", "2", "SOLVER.REFERENCE_WORLD_SIZE",
        "0", "TEST.EVAL_PERIOD", "1", "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "World size: 2" in result.stdout + result.stderr
    assert (tmp_path / "model_best.pth").exists()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    logged = (tmp_path / "metrics.json").read_text()
    assert "bbox/AP50" in logged
    assert "bbox_TTA/AP50" in logged


def assert_one_line_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr + result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_image_that_does_not_decode_is_named(
    datasets: Path, tmp_path: Path, processes: str
) -> None:
    folder = tmp_path / "tree_crowns"
    folder.mkdir()
    for name in ("annotations", "val"):
        (folder / name).symlink_to(datasets / "tree_crowns" / name)
    (folder / "train").mkdir()
    for i in range(4):
        (folder / "train" / f"{i}.png").write_bytes(b"no image")
    result = run(tmp_path, tmp_path / "output", f"--num-gpus={processes}")
    assert_one_line_error(result, ".png", "decode")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["MODEL.WEIGHTS", "missing.pth"], ["missing.pth"]),
        (["MODEL.DGNET.WIRING", "papr"], ["MODEL.DGNET.WIRING", "papr"]),
        (["MODEL.NO_SUCH_KEY", "1"], ["MODEL.NO_SUCH_KEY"]),
        (["DATASETS.TRAIN", "('no_such_set',)"], ["DATASETS.TRAIN", "no_such_set"]),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], ["MODEL.ROI_HEADS.NUM_CLASSES"]),
        (["MODEL.RESNETS.NORM", "foo"], ["the config describes no model", "foo"]),
        (["--num-gpus=2", "SOLVER.IMS_PER_BATCH", "3"], ["SOLVER.IMS_PER_BATCH 3", "2 processes"]),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"], ["SOLVER.AMP.ENABLED"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_are_named_in_one_line(
    datasets: Path, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    assert_one_line_error(run(datasets, tmp_path, *arguments), *parts)


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    assert_one_line_error(run(tmp_path, tmp_path / "output"), "train.json", "DATASETS.TRAIN_JSON")
