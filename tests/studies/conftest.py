"""A small Fashion-MNIST in its own format, and a study with known numbers."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NUM_IMAGES = {"train": 32, "t10k": 20}


def write_fashion_mnist(folder: Path) -> None:
    """Bright rectangles of ten widths on black, gzipped IDX."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in NUM_IMAGES.items():
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 4 : 8 + 2 * label] = rng.integers(60, 256, (20, 4 + 2 * label))
        header = struct.pack(">IIII", 2051, count, 28, 28)
        for name, data in (
            (f"{split}-images-idx3-ubyte.gz", header + images.tobytes()),
            (f"{split}-labels-idx1-ubyte.gz", struct.pack(">II", 2049, count) + labels.tobytes()),
        ):
            (folder / name).write_bytes(gzip.compress(data))


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``$DETECTRON2_DATASETS``, with Fashion-MNIST in it."""
    root = tmp_path / "datasets"
    write_fashion_mnist(root / "fashion-mnist")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root


@pytest.fixture
def study() -> dict[str, Any]:
    """One network, three seeds. Top-1 differs from plain by 1, 2, 3 points (dynamic) and by -1, 1,
    0 (static); AP by -2, -2, -2 and by 0.5, 0.5, 0.5."""
    top1 = {"plain": (80, 81, 82), "static-paper": (79, 82, 82), "dynamic-paper": (81, 83, 85)}
    ap = {"plain": (30, 31, 32), "static-paper": (30.5, 31.5, 32.5), "dynamic-paper": (28, 29, 30)}
    return {
        "command": "studies/run_study.py",
        "date": "2000-01-01",
        "scale": "full",
        "seeds": [0, 1, 2],
        "num_scenes": {"train": 600, "test": 300},
        "classifier_schedule": "2 epochs, batch 128",
        "detector_schedule": "300 iterations, batch 8",
        "environments": [{"CPU": "a processor, 2 cores", "PyTorch": "2.0"}],
        "runs": [
            {
                "network": "R_18", "arm": arm, "seed": seed, "top1": top1[arm][seed],
                "AP": ap[arm][seed], "AP50": 2 * ap[arm][seed], "seconds": 1200.0,
            }
            for arm in top1
            for seed in range(3)
        ],
    }  # fmt: skip
