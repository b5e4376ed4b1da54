"""A narrow ResNet-18 and a folder of coloured images, small enough to train in seconds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from dgnet_det.config import load_cfg

CONFIGS = Path(__file__).parents[2] / "configs" / "ImageNet-Classification"
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 50, 40)}


def write_images(folder: Path, per_class: int, seed: int) -> None:
    """``per_class`` noisy images of 40×36 pixels in one folder for each colour."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.normal(colour, 40, (36, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """18 training and 9 validation images of 3 classes."""
    write_images(tmp_path / "images" / "train", 6, seed=0)
    write_images(tmp_path / "images" / "val", 3, seed=1)
    return tmp_path / "images"


@pytest.fixture
def options(root: Path) -> list[str]:
    """Overrides of ``DG_R_18.yaml``: 3 epochs of 3 iterations of 6 images of 32×32 pixels."""
    return [
        *("MODEL.DEVICE", "cpu"),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", "8"),
        *("CLASSIFICATION.ROOT", str(root)),
        *("CLASSIFICATION.NUM_CLASSES", "3"),
        *("CLASSIFICATION.SIZE", "32"),
        *("CLASSIFICATION.TEST_RESIZE", "36"),
        *("CLASSIFICATION.EPOCHS", "3"),
        *("CLASSIFICATION.WARMUP_EPOCHS", "1"),
        *("SOLVER.IMS_PER_BATCH", "6"),
        *("SOLVER.BASE_LR", "0.05"),
        *("DATALOADER.NUM_WORKERS", "0"),
    ]


@pytest.fixture
def make_cfg(options: list[str], tmp_path: Path) -> Callable[..., CfgNode]:
    """The small config with further ``KEY, VALUE`` overrides."""

    def make(*overrides: str, output: str = "output") -> CfgNode:
        directory = tmp_path / output
        directory.mkdir(exist_ok=True)
        return load_cfg(
            str(CONFIGS / "DG_R_18.yaml"), [*options, "OUTPUT_DIR", str(directory), *overrides]
        )

    return make
