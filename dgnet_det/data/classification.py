"""Labelled images, ImageNet-style folders and Fashion-MNIST, and their batches."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from dgnet_det.config import one_line
from dgnet_det.data.images import load_image
from dgnet_det.data.order import TrainingBatches, build_loader, data_seed, loader_workers
from dgnet_det.errors import UserError, check_choice, first_few


def fashion_mnist(split: str) -> datasets.FashionMNIST:
    """Read ``train`` (60 000) or ``val`` (10 000) of torchvision's Fashion-MNIST, RGB images of
    28×28 pixels and labels 0 to 9, from ``$DETECTRON2_DATASETS``, into which it is downloaded.

    Raises:
        UserError: it cannot be downloaded, or a file is damaged.
    """
    root = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
    gray = transforms.Grayscale(num_output_channels=3)
    try:
        return datasets.FashionMNIST(root, train=split == "train", transform=gray, download=True)
    except Exception as error:  # torchvision's kinds, urllib's, and what a proxy makes of them
        raise UserError(
            f"{root / 'FashionMNIST' / 'raw'}: Fashion-MNIST is damaged, or not there and cannot be"
            f" downloaded ({one_line(error)}): put its four files there, unpacked, such as those of"
            " the Debian package dataset-fashion-mnist"
        ) from error


def build_datasets(cfg: CfgNode) -> tuple[Any, Any]:
    """Read the training and validation images that ``CLASSIFICATION`` names: (RGB image, label).

    Raises:
        UserError: a folder that is missing or empty, class folders that differ between ``train``
            and ``val``, or a number of classes other than ``CLASSIFICATION.NUM_CLASSES``.
    """
    options = cfg.CLASSIFICATION
    check_choice("CLASSIFICATION.DATASET", options.DATASET, ("imagefolder", "fashion_mnist"))
    read: Callable[[str], Any] = partial(_image_folder, Path(options.ROOT))
    if options.DATASET == "fashion_mnist":
        read = fashion_mnist
    train, val = map(read, ("train", "val"))
    if differing := set(train.classes) ^ set(val.classes):
        raise UserError(
            f"{options.ROOT}: class folders that are in only one of train and val:"
            f" {first_few(sorted(differing))}; make the two alike"
        )
    if len(train.classes) != options.NUM_CLASSES:
        raise UserError(
            f"CLASSIFICATION.NUM_CLASSES {options.NUM_CLASSES}: the data has {len(train.classes)}"
            " classes; set it to that"
        )
    return train, val


def _image_folder(root: Path, split: str) -> datasets.ImageFolder:
    folder = root / split
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set CLASSIFICATION.ROOT to the one above it")
    try:
        return datasets.ImageFolder(str(folder), loader=_read_image)
    except FileNotFoundError as error:  # no class folders, or one without images
        raise UserError(f"{folder}: {str(error).splitlines()[0]}") from error


def _read_image(path: str) -> Image.Image:
    return load_image(path).convert("RGB")


class Transformed(Dataset):
    """Images under a transform."""

    def __init__(self, dataset: Dataset, *transform: Callable) -> None:
        self.dataset = dataset
        self.transform = transforms.Compose([*transform, transforms.PILToTensor()])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The transformed image, uint8 [3, H, W], and its label."""
        image, label = self.dataset[index]
        return self.transform(image), label


def build_train_loader(cfg: CfgNode, dataset: Dataset) -> DataLoader:
    """Build a loader of endless micro-batches, ``CLASSIFICATION.ACCUMULATION`` an iteration: uint8
    RGB images [b, 3, SIZE, SIZE], randomly cropped and flipped, and labels [b].

    Raises:
        UserError: the batch cannot be split evenly.
    """
    options, world_size, size = cfg.CLASSIFICATION, comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    if size % (world_size * options.ACCUMULATION):
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {size}: make it a multiple of {world_size} processes"
            f" × CLASSIFICATION.ACCUMULATION {options.ACCUMULATION}"
        )
    crop = transforms.RandomResizedCrop(options.SIZE, scale=tuple(options.CROP_AREA))
    images = Transformed(dataset, crop, transforms.RandomHorizontalFlip())
    order = TrainingSampler(len(dataset), seed=data_seed(cfg))  # type: ignore[arg-type]
    batches = TrainingBatches(order, size // (world_size * options.ACCUMULATION))
    return build_loader(cfg, images, batches)


def build_test_loader(cfg: CfgNode, dataset: Dataset) -> DataLoader:
    """Build a loader of this process's share of the images, once each: uint8 RGB central crops
    [b, 3, SIZE, SIZE] and labels [b]."""
    options, world_size = cfg.CLASSIFICATION, comm.get_world_size()
    resize, crop = transforms.Resize(options.TEST_RESIZE), transforms.CenterCrop(options.SIZE)
    share = range(comm.get_rank(), len(dataset), world_size)  # type: ignore[arg-type]
    batch_size = max(cfg.SOLVER.IMS_PER_BATCH // (world_size * options.ACCUMULATION), 1)
    return DataLoader(
        Transformed(dataset, resize, crop),
        sampler=share,
        batch_size=batch_size,
        num_workers=loader_workers(cfg),
        pin_memory=torch.cuda.is_available(),
    )
