"""The order of training images and their random changes, which follow from seed and iteration
alone: a resumed training sees what an uninterrupted one would have seen."""

import atexit
import os
import random
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


def data_seed(cfg: CfgNode) -> int:
    """The seed of order and changes. With ``SEED`` -1 only the first weights are left to chance."""
    return max(cfg.SEED, 0)


def mix_seeds(*seeds: int) -> int:
    """Make one seed of several, unlike that of other combinations."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


@contextmanager
def random_numbers_from(*seeds: int) -> Iterator[None]:
    """Let Python, NumPy and PyTorch's CPU draw from ``seeds`` in the body, and go on afterwards as
    if nothing had been drawn."""
    seed = mix_seeds(*seeds)
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Endless batches of this process, each a list of (position, index): the image's place in the
    endless order of all processes, and its number in the dataset.

    ``order`` is one of Detectron2's samplers, of this process; ``batch_size`` is this process's.
    Where each image of the dataset has one of ``groups``, a batch is of one group."""

    def __init__(
        self, order: Sampler[int], batch_size: int, groups: Sequence[int] | None = None
    ) -> None:
        self.order, self.batch_size, self.groups = order, batch_size, groups
        self.over = torch.zeros(1).share_memory_()  # 1 once no more are needed
        atexit.register(self.over.fill_, 1.0)
        self.skipped = 0  # batches that were seen before this training was resumed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        begun: dict[int, list[tuple[int, int]]] = defaultdict(list)
        complete = 0
        for k, index in enumerate(self.order):
            batch = begun[self.groups[index] if self.groups else 0]
            batch.append((k * world_size + rank, index))
            if len(batch) == self.batch_size:
                complete += 1
                if complete > self.skipped:
                    yield list(batch)
                batch.clear()


class Seeded(Dataset):
    """A dataset whose random changes of an image follow from the seed and the image's position."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """The image of a (position, index)."""
        position, index = key
        with random_numbers_from(self.seed, position):
            return self.dataset[index]


def build_loader(
    cfg: CfgNode,
    dataset: Dataset,
    batches: TrainingBatches,
    collate: Callable[[list], Any] | None = None,
) -> DataLoader:
    """A loader of ``batches`` of a :class:`Seeded` dataset."""
    return DataLoader(
        Seeded(dataset, data_seed(cfg)),
        batch_sampler=cast(Sampler[list], batches),
        num_workers=loader_workers(cfg),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available() and collate is None,
        worker_init_fn=partial(_survive_signals, batches.over),
        generator=torch.Generator(),  # its own: it would draw one of the model's numbers
    )


def loader_workers(cfg: CfgNode) -> int:
    """``DATALOADER.NUM_WORKERS``, but at most as many as this process has cores."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cfg.DATALOADER.NUM_WORKERS, max(1, cores // comm.get_local_size()))


def _survive_signals(over: Tensor, _: int) -> None:
    """Let a data-loading worker, which the training needs for its last step, outlive Ctrl-C and a
    batch system's SIGTERM until the training is ``over``."""

    def end(number: int, _: Any) -> None:
        if over:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
