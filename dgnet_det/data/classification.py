"""Labelled images, ImageNet-style folders and Fashion-MNIST, and their batches.

Which images a batch has, in which order and with which augmentation, follows from the seed and the
iteration alone, so that a resumed run sees what the uninterrupted one would have seen, and any
number of processes sees the same images.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import datasets, transforms

from dgnet_det.config import one_line
from dgnet_det.data.images import load_image
from dgnet_det.errors import UserError, check_choice, first_few


def fashion_mnist(split: str) -> datasets.FashionMNIST:
    """One split of torchvision's Fashion-MNIST, ``train`` (60 000) or ``val`` (10 000), as RGB
    images of 28×28 pixels and labels 0 to 9, in ``$DETECTRON2_DATASETS``, downloaded where it is
    not there.

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


def build_datasets(cfg: CfgNode) -> tuple[Dataset, Dataset]:
    """The training and validation images that ``CLASSIFICATION`` names, as (RGB image, label).

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


def mix_seeds(*seeds: int) -> int:
    """One seed from several, unlike that of any other combination of as many."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Endless micro-batches of this process, each a list of (epoch, index).

    An iteration takes ``accumulation`` of them, ``batch_size`` images over all processes. Each
    epoch is shuffled anew, its incomplete last batch dropped.

    Raises:
        UserError: a batch that cannot be split evenly, or of more images than there are.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, accumulation: int, seed: int) -> None:
        world_size, size = comm.get_world_size(), len(dataset)  # type: ignore[arg-type]
        if batch_size % (world_size * accumulation):
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {batch_size}: make it a multiple of {world_size} processes"
                f" × CLASSIFICATION.ACCUMULATION {accumulation}"
            )
        if size < batch_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {batch_size}: there are only {size} training images;"
                " lower it"
            )
        self.iterations_per_epoch = size // batch_size
        self.start_iteration = 0
        self.batch_size = batch_size // world_size
        self.micro_batch_size = self.batch_size // accumulation
        self.size, self.seed = size, seed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, skipped = divmod(self.start_iteration, self.iterations_per_epoch)
        for epoch in count(first_epoch):
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(self.size, generator=generator)
            indices = order[comm.get_rank() :: comm.get_world_size()].tolist()
            start = skipped * self.batch_size if epoch == first_epoch else 0
            stop = self.iterations_per_epoch * self.batch_size
            for i in range(start, stop, self.micro_batch_size):
                yield [(epoch, index) for index in indices[i : i + self.micro_batch_size]]


class Transformed(Dataset):
    """Images under a transform, whose random draws follow from the seed, the epoch and the image
    alone."""

    def __init__(self, dataset: Dataset, *transform: Callable, seed: int) -> None:
        self.dataset = dataset
        self.transform = transforms.Compose([*transform, transforms.PILToTensor()])
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """The transformed image, uint8 [3, H, W], and the label of an epoch and an index."""
        image, label = self.dataset[key[1]]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix_seeds(self.seed, *key))
            return self.transform(image), label


def build_train_loader(
    cfg: CfgNode, dataset: Dataset, batches: TrainingBatches, *, seed: int
) -> DataLoader:
    """Endless micro-batches: uint8 RGB images [b, 3, SIZE, SIZE], randomly cropped and flipped, and
    labels [b]."""
    options = cfg.CLASSIFICATION
    crop = transforms.RandomResizedCrop(options.SIZE, scale=tuple(options.CROP_AREA))
    images = Transformed(dataset, crop, transforms.RandomHorizontalFlip(), seed=seed)
    return _loader(cfg, images, batch_sampler=cast(Sampler[list], batches))


def build_test_loader(cfg: CfgNode, dataset: Dataset) -> DataLoader:
    """This process's share of the images, once each: uint8 RGB central crops [b, 3, SIZE, SIZE] and
    labels [b]."""
    options, world_size = cfg.CLASSIFICATION, comm.get_world_size()
    resize, crop = transforms.Resize(options.TEST_RESIZE), transforms.CenterCrop(options.SIZE)
    size = len(dataset)  # type: ignore[arg-type]
    share = [(0, index) for index in range(comm.get_rank(), size, world_size)]
    batch_size = max(cfg.SOLVER.IMS_PER_BATCH // (world_size * options.ACCUMULATION), 1)
    images = Transformed(dataset, resize, crop, seed=0)
    return _loader(cfg, images, sampler=share, batch_size=batch_size)


def _loader(cfg: CfgNode, images: Transformed, **options: Any) -> DataLoader:
    workers, pin = cfg.DATALOADER.NUM_WORKERS, torch.cuda.is_available()
    return DataLoader(images, num_workers=workers, pin_memory=pin, **options)
