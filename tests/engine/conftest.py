"""Data and overrides small enough that a training takes seconds."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.configs import ROOT
from PIL import Image

from dgnet_det.config import load_cfg, read_yaml
from dgnet_det.engine.schedule import fit_classifier_schedule

# Their ids are in another order than their places in the file, and not contiguous.
FRUIT = {7: "fig", 2: "apple", 30: "pear"}
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 50, 40)}


def _write_fruit(folder: Path, split: str, categories: dict[int, str] = FRUIT) -> list[str]:
    """Noise images of 64×64 pixels, six for training and two otherwise, with two boxes each, and
    one without; the overrides that name them."""
    rng = np.random.default_rng(0)
    (folder / split).mkdir(parents=True)
    coco: dict = {"images": [], "annotations": []}
    for i in range(7 if split == "train" else 3):
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


@pytest.fixture(scope="session")
def write_fruit() -> Callable[..., list[str]]:
    """Writes a split into a folder and returns its overrides."""
    return _write_fruit


@pytest.fixture(scope="session")
def fruit(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that name a training and a validation set of three classes."""
    folder = tmp_path_factory.mktemp("fruit")
    return _write_fruit(folder, "train") + _write_fruit(folder, "val")


@pytest.fixture(scope="session")
def detector(fruit: list[str]) -> list[str]:
    """The command line of a narrow detector on them, in the residual wiring."""
    config = ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_18_residual_FPN_1x.yaml"
    return [
        "--config-file", str(config),
        *fruit, "MODEL.WEIGHTS", "", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "16",
        "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50",
        "MODEL.RPN.POST_NMS_TOPK_TEST", "20", "INPUT.MIN_SIZE_TRAIN", "(64,)",
        "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "SEED", "1",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 training and 9 validation images of 40×36 pixels, noise of three colours, in a folder for
    each."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for split, per_class in (("train", 6), ("val", 3)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.normal(colour, 40, (36, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def classifier(colours: Path) -> list[str]:
    """The command line of a narrow classifier of them: 3 epochs of 3 iterations of 6 images of
    32×32 pixels."""
    return [
        "--config-file", str(ROOT / "configs/ImageNet-Classification/DG_R_18.yaml"),
        "MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "CLASSIFICATION.ROOT", str(colours),
        "CLASSIFICATION.NUM_CLASSES", "3", "CLASSIFICATION.SIZE", "32",
        "CLASSIFICATION.TEST_RESIZE", "36", "CLASSIFICATION.EPOCHS", "3",
        "CLASSIFICATION.WARMUP_EPOCHS", "1", "SOLVER.IMS_PER_BATCH", "6",
        "SOLVER.BASE_LR", "0.05", "DATALOADER.NUM_WORKERS", "0",
    ]  # fmt: skip


@pytest.fixture
def make_cfg(classifier: list[str], tmp_path: Path) -> Callable[..., CfgNode]:
    """The classifier's config with further ``KEY, VALUE`` overrides."""

    def make(*overrides: str, output: str = "output") -> CfgNode:
        _, config_file, *opts = classifier
        opts += ["OUTPUT_DIR", str(tmp_path / output), *overrides]
        cfg, recipe = load_cfg(config_file, opts), read_yaml(config_file)
        return fit_classifier_schedule(cfg, 1, 18, recipe=recipe, given=opts[::2])

    return make
