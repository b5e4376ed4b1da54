"""What the tests of data share."""

from pathlib import Path

import pytest
from helpers.coco_sets import Splits
from helpers.imported_sets import YOLO_YAML, fill


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    return Splits(tmp_path)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """The usual YOLO layout with a data.yaml: train a and b (without labels), val c."""
    files = dict.fromkeys(("images/train/a.jpg", "images/train/b.png", "images/val/c.jpg"))
    files |= {
        # Centre (40, 30), 20 × 30 pixels; then the whole image, with a confidence
        "labels/train/a.txt": "\ufeff1 0.5 0.5 0.25 0.5\n\n0 0.5 0.5 1 1 0.9\n",
        # A triangle between x 0.125 and 0.75, y 0.25 and 0.5
        "labels/val/c.txt": "0 0.125 0.25 0.75 0.25 0.5 0.5\n",
        "data.yaml": YOLO_YAML + "names: [cat, dog]\n",
    }
    return fill(tmp_path / "yolo", files)
