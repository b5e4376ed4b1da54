"""The whole chain from the command line: pretrain, convert, fine-tune, evaluate, report."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine.defaults import seed_all_rng
from detectron2.modeling import build_model

from configs import ROOT
from dgnet_det.config import load_cfg
from dgnet_det.data import CheckedDatasetMapper
from dgnet_det.errors import UserError
from studies.design import ARMS, NETWORKS, SCALES, Chain
from studies.runs import Runner
from studies.scenes import write_composed_scenes

main = runpy.run_path(str(ROOT / "studies/run_study.py"))["main"]


def test_chain_and_resuming(
    datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    arguments = [
        "--scale", "tiny", "--seeds", "1", "--networks", "R_18", "--jobs", "2", "--output",
        str(output), "--arms", "plain", "dynamic-paper",
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, "studies/run_study.py", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[2/2] R_18/" in result.stdout
    for arm in ("plain", "dynamic-paper"):
        assert "missing: 0" in (output / "R_18" / arm / "seed0/conversion.log").read_text()
    study = json.loads((output / "study.json").read_text())
    assert [run["arm"] for run in study["runs"]] == ["plain", "dynamic-paper"]
    assert all(0 <= run["top1"] <= 100 and run["AP"] >= 0 for run in study["runs"])
    page = (output / "study.md").read_text()
    assert "figures mean nothing" in page
    assert "1 epoch, batch 16; " in page
    assert "4 iterations, batch 2; " in page
    assert (output / "images/study.png").exists()
    assert not list(output.rglob("*.pth"))

    finished = {path: path.read_bytes() for path in output.glob("R_18/*/seed0/*.json")}
    assert len(finished) == 4
    main(arguments)
    assert "2 of 2 chains are finished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in output.glob("R_18/*/seed0/*.json")} == finished
    assert json.loads((output / "study.json").read_text())["runs"] == study["runs"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--seeds", "0"], "--seeds 0"),
        (["--seeds", "11"], "1 to 10"),
        (["--jobs", "0"], "--jobs 0"),
        (["--arms", "dynamic-paper"], "plain"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arguments: list[str], part: str) -> None:
    with pytest.raises(UserError, match=part):
        main([*arguments, "--output", str(tmp_path / "study")])
    assert not (tmp_path / "study").exists()


def test_a_failed_run_is_named_and_repeated(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    tool = tmp_path / "tools/train_classifier.py"
    tool.write_text("raise SystemExit('error: no data')\n")
    chain = Chain("R_18", "plain", 0)
    runner = Runner(tmp_path, tmp_path / "runs", SCALES["tiny"], "digest")
    with pytest.raises(UserError, match=r"classification\.log: error: no data"):
        runner.run([chain], jobs=1)
    assert not list((tmp_path / "runs").rglob("*.json"))


@pytest.mark.parametrize("network", NETWORKS)
def test_both_yaml_files_of_a_network_describe_one_backbone(network: str) -> None:
    classifier, detector = (
        load_cfg(str(ROOT / f"configs/Study/{name}.yaml")).clone()
        for name in (f"classifier_{network}", f"faster_rcnn_{network}_FPN")
    )
    for cfg in (classifier, detector):
        cfg.defrost()
        cfg.MODEL.RESNETS.OUT_FEATURES = []
    assert classifier.MODEL.RESNETS == detector.MODEL.RESNETS
    assert classifier.MODEL.PIXEL_MEAN == detector.MODEL.PIXEL_MEAN


def test_all_arms_see_the_same_images(datasets: Path) -> None:
    write_composed_scenes(datasets, {"train": 8, "test": 2})
    folder = datasets / "composed_scenes"
    name = "composed_scenes_of_this_test"
    register_coco_instances(name, {}, str(folder / "annotations/train.json"), str(folder / "train"))
    seen = []
    for arm in ("plain", "dynamic-paper", "static-residual"):
        cfg = load_cfg(
            str(ROOT / "configs/Study/faster_rcnn_R_18_FPN.yaml"),
            [
                *ARMS[arm].overrides,
                "MODEL.DEVICE",
                "cpu",
                "SOLVER.IMS_PER_BATCH",
                "2",
                "DATASETS.TRAIN",
                f"('{name}',)",
            ],
        )
        # As tools/train_net.py: seed, model, loader.
        seed_all_rng(5)
        build_model(cfg)
        loader = build_detection_train_loader(cfg, mapper=CheckedDatasetMapper(cfg, True))
        batches = iter(loader)
        images = [image for _ in range(4) for image in next(batches)]
        seen.append(
            [(i["file_name"], i["image"].sum().item(), i["image"][0, 0, 0].item()) for i in images]
        )
    assert seen[0] == seen[1] == seen[2]
