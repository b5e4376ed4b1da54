"""Data as it should be, and every kind of data and config that cannot be used."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from dgnet_det import UserError
from dgnet_det.data.classification import build_datasets, find_fashion_mnist
from dgnet_det.engine.classification import datasets as module
from dgnet_det.engine.classification import evaluate_checkpoint, train
from dgnet_det.engine.classification.loading import TrainingBatches, build_train_loader

from .test_training import CONFIG, tool

CPU = torch.device("cpu")


def write_idx(path: Path, values: np.ndarray, compress: bool) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    data = header + values.tobytes()
    if compress:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def write_fashion_mnist(folder: Path, compress: bool) -> np.ndarray:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 28, 28), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images, compress)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels, compress)
    return images


@pytest.fixture
def no_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``$DETECTRON2_DATASETS``, no system folder, no network."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nno route")

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(module, "FASHION_MNIST_SYSTEM_FOLDER", str(tmp_path / "system"))
    monkeypatch.setattr(module.datasets, "FashionMNIST", unreachable)
    return tmp_path


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("place", ["datasets/fashion-mnist", "datasets/FashionMNIST/raw", "system"])
def test_fashion_mnist_is_found_and_read(
    place: str, compress: bool, no_fashion_mnist: Path, make_cfg: Callable[..., CfgNode]
) -> None:
    images = write_fashion_mnist(no_fashion_mnist / place, compress)
    cfg = make_cfg(*("CLASSIFICATION.DATASET", "fashion_mnist", "CLASSIFICATION.NUM_CLASSES", "10"))
    train_set, val_set = build_datasets(cfg)
    assert len(train_set) == len(val_set) == 12
    image, label = val_set[11]
    assert label == 1
    assert np.array_equal(np.asarray(image), np.repeat(images[11][:, :, None], 3, axis=2))

    batches = TrainingBatches(train_set, batch_size=6, accumulation=2, seed=0)
    pixels, labels = next(iter(build_train_loader(cfg, train_set, batches, seed=0)))
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert labels.shape == (3,)


def test_absent_fashion_mnist_says_how_to_get_it(no_fashion_mnist: Path) -> None:
    with pytest.raises(UserError, match=r"fashion-mnist.*Debian package dataset-fashion-mnist"):
        find_fashion_mnist()


def test_damaged_fashion_mnist_is_named(
    no_fashion_mnist: Path, make_cfg: Callable[..., CfgNode]
) -> None:
    folder = no_fashion_mnist / "datasets" / "fashion-mnist"
    write_fashion_mnist(folder, compress=True)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: missing or damaged"):
        build_datasets(make_cfg("CLASSIFICATION.DATASET", "fashion_mnist"))


def test_an_epoch_shows_each_image_once_in_a_new_order(make_cfg: Callable[..., CfgNode]) -> None:
    train_set, _ = build_datasets(make_cfg())
    batches = iter(TrainingBatches(train_set, batch_size=6, accumulation=2, seed=0))
    epochs = [[key for _ in range(6) for key in next(batches)] for _ in range(2)]
    for epoch, keys in enumerate(epochs):
        assert sorted(keys) == [(epoch, index) for index in range(18)]
    assert [index for _, index in epochs[0]] != [index for _, index in epochs[1]]


def test_augmentation_follows_from_seed_epoch_and_image(make_cfg: Callable[..., CfgNode]) -> None:
    cfg = make_cfg()
    train_set, _ = build_datasets(cfg)
    batches = TrainingBatches(train_set, batch_size=6, accumulation=1, seed=0)

    def draw(key: tuple[int, int], seed: int = 0) -> torch.Tensor:
        torch.rand(3)
        return build_train_loader(cfg, train_set, batches, seed=seed).dataset[key][0]

    assert torch.equal(draw((0, 5)), draw((0, 5)))
    assert not torch.equal(draw((0, 5)), draw((1, 5)))
    assert not torch.equal(draw((0, 5)), draw((0, 5), seed=1))


def test_class_folders_that_differ_are_named(make_cfg: Callable[..., CfgNode], root: Path) -> None:
    (root / "val" / "red").rename(root / "val" / "rouge")
    with pytest.raises(UserError, match=r"only one of train and val: red, rouge"):
        build_datasets(make_cfg())


def test_an_empty_class_folder_is_named(make_cfg: Callable[..., CfgNode], root: Path) -> None:
    for path in (root / "val" / "red").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"val: .*red"):
        build_datasets(make_cfg())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("CLASSIFICATION.ROOT", "/nowhere"), r"/nowhere/train: no such folder.*CLASSIFICATION"),
        (("CLASSIFICATION.NUM_CLASSES", "5"), r"NUM_CLASSES 5: the data has 3"),
        (("CLASSIFICATION.DATASET", "cifar"), r"DATASET 'cifar': choose from imagefolder"),
        (("CLASSIFICATION.WARMUP_EPOCHS", "3"), r"WARMUP_EPOCHS 3: .*CLASSIFICATION\.EPOCHS 3"),
        (("CLASSIFICATION.ACCUMULATION", "4"), r"IMS_PER_BATCH 6: .*ACCUMULATION 4"),
        (("SOLVER.IMS_PER_BATCH", "1024"), r"IMS_PER_BATCH 1024: .* only 18 training images"),
        (("MODEL.WEIGHTS", "/nowhere.pth"), r"MODEL\.WEIGHTS /nowhere\.pth"),
    ],
)
def test_unusable_values_are_user_errors(
    overrides: tuple[str, str], message: str, make_cfg: Callable[..., CfgNode]
) -> None:
    with pytest.raises(UserError, match=message):
        train(make_cfg(*overrides), CPU)


def test_a_checkpoint_of_another_network_is_a_user_error(
    make_cfg: Callable[..., CfgNode], tmp_path: Path
) -> None:
    from torchvision.models import mobilenet_v2

    path = tmp_path / "mobilenet_v2.pth"
    torch.save(mobilenet_v2().state_dict(), path)
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS .*mobilenet_v2\.pth"):
        train(make_cfg("MODEL.WEIGHTS", str(path)), CPU)


def test_evaluation_needs_a_checkpoint_with_this_head(
    make_cfg: Callable[..., CfgNode], tmp_path: Path
) -> None:
    from dgnet_det.engine.classification import build_classifier

    cfg = make_cfg()
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: empty: this needs a checkpoint"):
        evaluate_checkpoint(cfg, CPU)
    state = build_classifier(cfg).state_dict()
    headless = {name: x for name, x in state.items() if not name.startswith("head.")}
    more_classes = {**state, "head.linear.weight": torch.zeros(7, 64)}
    for tensors, absent in (
        (headless, r"head\.linear\.bias, head\.linear\.weight"),
        (more_classes, r"head\.linear\.weight"),
    ):
        path = tmp_path / "part.pth"
        torch.save({"model": tensors}, path)
        with pytest.raises(UserError, match=rf"MODEL\.WEIGHTS .*{absent} missing"):
            evaluate_checkpoint(make_cfg("MODEL.WEIGHTS", str(path)), CPU)


def test_an_unreadable_image_is_one_line_from_the_command_line(
    options: list[str], root: Path, tmp_path: Path
) -> None:
    path = root / "train" / "red" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    done = tool(
        *("--config-file", str(CONFIG), *options, "DATALOADER.NUM_WORKERS", "1"),
        *("OUTPUT_DIR", str(tmp_path / "output")),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {path}: cannot be read as an image; replace or remove it"]
