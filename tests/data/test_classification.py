"""Labelled images as they should be, and every kind that cannot be used."""

import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from dgnet_det.config import get_cfg
from dgnet_det.data.classification import (
    build_datasets,
    build_test_loader,
    build_train_loader,
    fashion_mnist,
)
from dgnet_det.errors import UserError


def write_fashion_mnist(datasets: Path) -> np.ndarray:
    folder = datasets / "FashionMNIST/raw"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 28, 28), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    for prefix in ("train", "t10k"):
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + values.tobytes())
    return images


def small(root: Path, **options: object) -> CfgNode:
    """A config for images in ``root``, resized to 32×32 pixels."""
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 6, 0
    given = {"ROOT": str(root), "NUM_CLASSES": 3, "SIZE": 32, "TEST_RESIZE": 36, **options}
    cfg.CLASSIFICATION.update(given)
    return cfg


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """18 training and 9 validation images of 3 classes."""
    rng = np.random.default_rng(0)
    for split, per_class in (("train", 6), ("val", 3)):
        for name in ("blue", "green", "red"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def no_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``$DETECTRON2_DATASETS``, and no network."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unreachable)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def test_fashion_mnist_is_read(no_fashion_mnist: Path) -> None:
    images = write_fashion_mnist(no_fashion_mnist)
    cfg = small(no_fashion_mnist, DATASET="fashion_mnist", NUM_CLASSES=10)
    train_set, val_set = build_datasets(cfg)
    assert len(train_set) == len(val_set) == 12
    image, label = val_set[11]
    assert label == 1
    assert np.array_equal(np.asarray(image), np.repeat(images[11][:, :, None], 3, axis=2))

    cfg.CLASSIFICATION.ACCUMULATION = 2
    pixels, labels = next(iter(build_train_loader(cfg, train_set)))
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert labels.shape == (3,)


def test_fashion_mnist_that_is_absent_or_damaged(no_fashion_mnist: Path) -> None:
    with pytest.raises(UserError, match=r"no route.*Debian package dataset-fashion-mnist"):
        fashion_mnist("train")
    write_fashion_mnist(no_fashion_mnist)
    path = no_fashion_mnist / "FashionMNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"FashionMNIST/raw: Fashion-MNIST is damaged"):
        fashion_mnist("train")


def test_processes_share_the_validation_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = small(root)
    _, test_set = build_datasets(cfg)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        shares.append(list(build_test_loader(cfg, test_set).sampler))
    assert sorted(index for share in shares for index in share) == list(range(9))
    assert {len(share) for share in shares} == {2, 3}


def test_images_that_cannot_be_used_are_named(root: Path) -> None:
    path = root / "val" / "red" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    _, val_set = build_datasets(small(root))
    with pytest.raises(UserError, match=r"red/2\.png: the image does not decode"):
        val_set[8]
    (root / "val" / "red").rename(root / "val" / "rouge")
    with pytest.raises(UserError, match=r"only one of train and val: red, rouge"):
        build_datasets(small(root))
    for path in (root / "val" / "rouge").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"val: .*rouge"):
        build_datasets(small(root))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ROOT", "/nowhere", r"/nowhere/train: no such folder.*CLASSIFICATION"),
        ("NUM_CLASSES", 5, r"NUM_CLASSES 5: the data has 3"),
        ("DATASET", "cifar", r"DATASET 'cifar': choose from imagefolder"),
        ("ACCUMULATION", 4, r"IMS_PER_BATCH 6: .*ACCUMULATION 4"),
    ],
)
def test_unusable_values_are_named(root: Path, key: str, value: object, message: str) -> None:
    cfg = small(root, **{key: value})
    with pytest.raises(UserError, match=message):
        build_train_loader(cfg, build_datasets(cfg)[0])
