"""Batches: which images, in which order, with which augmentation.

All of it follows from the seed and the iteration alone, so that a resumed run sees what the
uninterrupted one would have seen, and any number of processes sees the same images.
"""

from collections.abc import Iterator
from itertools import count
from typing import cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, Subset
from torchvision import transforms

from dgnet_det.errors import UserError


def mix_seeds(*seeds: int) -> int:
    """One seed from several, unlike that of any other combination of as many."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Endless micro-batches of this process, each a list of (epoch, index).

    An iteration takes ``accumulation`` of them. Each epoch is shuffled anew, its incomplete last
    batch dropped.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, accumulation: int, seed: int) -> None:
        """
        Args:
            dataset: with a length.
            batch_size: images of an iteration, over all processes.
            accumulation: micro-batches of each process per iteration.
            seed: of the shuffling.

        Raises:
            UserError: a batch that cannot be split evenly, or of more images than there are.
        """
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
        self.sampler: DistributedSampler = DistributedSampler(
            dataset,
            num_replicas=world_size,
            rank=comm.get_rank(),
            shuffle=True,
            seed=seed,
            drop_last=True,
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, skipped = divmod(self.start_iteration, self.iterations_per_epoch)
        for epoch in count(first_epoch):
            self.sampler.set_epoch(epoch)
            indices = list(self.sampler)
            start = skipped * self.batch_size if epoch == first_epoch else 0
            for i in range(
                start, self.iterations_per_epoch * self.batch_size, self.micro_batch_size
            ):
                yield [(epoch, index) for index in indices[i : i + self.micro_batch_size]]


class Augmented(Dataset):
    """Images under a random transform whose draw follows from the seed, the epoch and the image."""

    def __init__(self, dataset: Dataset, transform: transforms.Compose, *, seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """The transformed image and the label of a key of :class:`TrainingBatches`."""
        image, label = self.dataset[key[1]]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix_seeds(self.seed, *key))
            return self.transform(image), label


class Transformed(Dataset):
    """Images under a fixed transform."""

    def __init__(self, dataset: Dataset, transform: transforms.Compose) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return self.transform(image), label


def build_train_loader(
    cfg: CfgNode, dataset: Dataset, batches: TrainingBatches, *, seed: int
) -> DataLoader:
    """Endless micro-batches: uint8 RGB images [b, 3, SIZE, SIZE], randomly cropped and flipped, and
    labels [b]."""
    options = cfg.CLASSIFICATION
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(options.SIZE, scale=tuple(options.CROP_AREA)),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    return DataLoader(
        Augmented(dataset, transform, seed=seed),
        batch_sampler=cast(Sampler[list], batches),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=torch.cuda.is_available(),
    )


def build_test_loader(cfg: CfgNode, dataset: Dataset) -> DataLoader:
    """This process's share of the images, once each: uint8 RGB central crops [b, 3, SIZE, SIZE] and
    labels [b]."""
    options, world_size = cfg.CLASSIFICATION, comm.get_world_size()
    transform = transforms.Compose(
        [
            transforms.Resize(options.TEST_RESIZE),
            transforms.CenterCrop(options.SIZE),
            transforms.PILToTensor(),
        ]
    )
    size = len(dataset)  # type: ignore[arg-type]
    share = Subset(Transformed(dataset, transform), range(comm.get_rank(), size, world_size))
    return DataLoader(
        share,
        batch_size=max(cfg.SOLVER.IMS_PER_BATCH // (world_size * options.ACCUMULATION), 1),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=torch.cuda.is_available(),
    )
