"""Data in the studies' formats, small."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studies.coco import write_split

NUM_IMAGES = {"train": 32, "t10k": 20}


@pytest.fixture
def products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fashion-MNIST's files, where they are found: bright rectangles of ten widths on black."""
    folder = tmp_path / "datasets/FashionMNIST/raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in NUM_IMAGES.items():
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 4 : 8 + 2 * label] = rng.integers(60, 256, (20, 4 + 2 * label))
        header = struct.pack(">IIII", 2051, count, 28, 28)
        for name, data in (
            (f"{split}-images-idx3-ubyte", header + images.tobytes()),
            (f"{split}-labels-idx1-ubyte", struct.pack(">II", 2049, count) + labels.tobytes()),
        ):
            (folder / name).write_bytes(data)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


@pytest.fixture
def crowns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with ``datasets/tree_crowns``: four noise tiles a split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        tiles = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(4)]
        boxes = [(0, [4.0, 10.0, 24.0, 30.0]), (0, [34.0, 10.0, 24.0, 30.0])]
        items = [(f"{k}.png", tile, boxes) for k, tile in enumerate(tiles)]
        write_split(tmp_path / "datasets/tree_crowns", split, ["tree"], {}, items)
    monkeypatch.chdir(tmp_path)
