"""From data of one's own to a detector that knows its classes, by tools/train_net.py alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from configs import ROOT
from dgnet_det.config import load_cfg
from dgnet_det.data import check_datasets
from dgnet_det.engine.trainer import Trainer
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import load_predictor

CONFIG = "configs/COCO-Detection/faster_rcnn_DG_MobileNetV2_residual_FPN_1x.yaml"
SMALL = [
    "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "DATALOADER.NUM_WORKERS", "0", "SEED", "1",
]  # fmt: skip
# Their ids are in another order than their places in the file, and not contiguous.
FRUIT = {7: "fig", 2: "apple", 30: "pear"}
NAMES = ["apple", "fig", "pear"]


def write_split(folder: Path, split: str, categories: dict[int, str]) -> list[str]:
    """Six noise images with two boxes each, and one without; their overrides."""
    rng = np.random.default_rng(0)
    (folder / split).mkdir(parents=True)
    coco: dict = {"images": [], "annotations": []}
    for i in range(7):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / f"{i}.png")
        coco["images"].append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        for x in (4, 34) if i else ():
            label = list(categories)[(i + x) % len(categories)]
            coco["annotations"].append(
                {"id": len(coco["annotations"]) + 1, "image_id": i, "category_id": label,
                 "bbox": [x, 10, 24, 30], "area": 720, "iscrowd": 0}
            )  # fmt: skip
    coco["categories"] = [{"id": k, "name": name} for k, name in categories.items()]
    path = folder / f"{split}.json"
    path.write_text(json.dumps(coco))
    key = f"DATASETS.{split.upper()}"
    return [f"{key}_JSON", str(path), f"{key}_IMAGES", str(folder / split)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that name the two splits."""
    folder = tmp_path_factory.mktemp("fruit")
    return write_split(folder, "train", FRUIT) + write_split(folder, "val", FRUIT)


def train_net(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/train_net.py", *arguments],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """OUTPUT_DIR and what was printed, after three passes by two processes."""
    output = tmp_path_factory.mktemp("trained")
    result = train_net(
        "--config-file", CONFIG, "--num-gpus", "2", "--json", str(output / "metrics-last.json"),
        *SMALL, *data, "SOLVER.EPOCHS", "3", "OUTPUT_DIR", str(output),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return output, result.stdout


def test_classes_and_schedule_come_from_the_data(trained: tuple[Path, str]) -> None:
    output, printed = trained
    cfg = yaml.safe_load((output / "config.yaml").read_text())
    assert cfg["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 3
    # Of 7 images 6 have objects; 2 processes take 2 each, an eighth of the recipe's processes.
    solver = {key: cfg["SOLVER"][key] for key in ("IMS_PER_BATCH", "MAX_ITER", "EPOCHS", "BASE_LR")}
    assert solver == {"IMS_PER_BATCH": 4, "MAX_ITER": 5, "EPOCHS": 3, "BASE_LR": 0.005}
    for line in (
        "images         6",
        "classes        3: apple, fig, pear",
        "batch          4 (2 processes × 2)",
        "learning rate  0.005, after 0 iterations of warm-up; × 0.1 at iterations 3, 4",
        "iterations     5: 3.333 passes over the images",
    ):
        assert line in printed
    for name in ("model_final", "model_best"):
        checkpoint = torch.load(output / f"{name}.pth", weights_only=True)
        assert checkpoint["class_names"] == NAMES
        assert checkpoint["model"]["roi_heads.box_predictor.cls_score.bias"].shape == (4,)
    with Image.open(output / "training.png") as picture:
        assert picture.width > 1000
    assert {"AP-apple", "AP-fig", "AP-pear"} <= json.loads(
        (output / "metrics-last.json").read_text()
    )["bbox"].keys()


def test_the_written_config_repeats_the_run(trained: tuple[Path, str], tmp_path: Path) -> None:
    """But for the evaluation, whose threshold no score reaches."""
    output, printed = trained
    result = train_net(
        "--config-file", str(output / "config.yaml"), "--num-gpus", "2", "OUTPUT_DIR",
        str(tmp_path), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (output, tmp_path)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    assert "Likely causes" not in printed
    for text in (result.stdout, (tmp_path / "log.txt").read_text()):
        assert "The box AP is 0 or undefined. Likely causes:" in text
        assert "only 5 iterations were done" in text
        assert "MODEL.WEIGHTS is empty" in text
        assert "all scores are below MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.999: the highest" in text


def test_inference_knows_the_classes_without_the_data(trained: tuple[Path, str]) -> None:
    weights = str(trained[0] / "model_final.pth")
    predictor = load_predictor(load_cfg(str(ROOT / CONFIG), [*SMALL, "MODEL.WEIGHTS", weights]))
    assert predictor.class_names == NAMES
    assert predictor.model.roi_heads.num_classes == 3


def test_inference_refuses_weights_of_another_number_of_classes(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    """Where the checkpoint does not say what its classes are, as Detectron2's do not."""
    checkpoint = torch.load(trained[0] / "model_final.pth", weights_only=True)
    torch.save({"model": checkpoint["model"]}, tmp_path / "x.pth")
    opts = [*SMALL, "MODEL.WEIGHTS", str(tmp_path / "x.pth")]
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS .*x\.pth: roi_heads.* number of classes"):
        load_predictor(load_cfg(str(ROOT / CONFIG), opts))


def test_evaluation_of_other_classes_is_a_one_line_error(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    val = write_split(tmp_path, "val", {1: "fig", 2: "apple", 3: "pear"})
    result = train_net(
        "--config-file", CONFIG, "--eval-only", *SMALL, *val, "OUTPUT_DIR", str(tmp_path / "out"),
        "MODEL.WEIGHTS", str(trained[0] / "model_final.pth"),
    )  # fmt: skip
    assert result.returncode == 1
    assert "Traceback" not in result.stderr + result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "model_final.pth: trained for 3 classes (apple, fig, pear)" in line
    assert "(fig, apple, pear)" in line


def test_a_training_that_diverges_names_the_learning_rate(data: list[str], tmp_path: Path) -> None:
    cfg = load_cfg(
        str(ROOT / CONFIG),
        [*SMALL, *data, "SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", "2",
         "SOLVER.BASE_LR", "1e9", "SOLVER.WARMUP_ITERS", "0", "OUTPUT_DIR", str(tmp_path)],
    )  # fmt: skip
    check_datasets(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    with pytest.raises(UserError, match=r"SOLVER.BASE_LR 1e\+09, with a batch of 2: .* NaN"):
        Trainer(cfg).train()
