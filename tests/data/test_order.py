"""Images in an order, and under changes, that follow from seed and iteration."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import Dataset

from dgnet_det.config import get_cfg
from dgnet_det.data.order import TrainingBatches, build_loader, loader_workers


def batches(groups: list[int] | None = None) -> TrainingBatches:
    return TrainingBatches(TrainingSampler(6, seed=3), 2, groups)


def test_an_epoch_shows_each_image_once_in_a_new_order() -> None:
    keys = [key for batch in islice(batches(), 6) for key in batch]
    assert [position for position, _ in keys] == list(range(12))
    first, second = [index for _, index in keys[:6]], [index for _, index in keys[6:]]
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


@pytest.mark.parametrize("groups", [None, [0, 1, 1, 0, 1, 1]])
def test_a_resumed_training_goes_on_where_it_was(groups: list[int] | None) -> None:
    """Also with batches of one group each, some of which are begun and not complete."""
    expected = list(islice(batches(groups), 20))
    resumed = batches(groups)
    resumed.skipped = 7
    assert list(islice(resumed, 13)) == expected[7:]
    if groups:
        assert all(len({groups[index] for _, index in batch}) == 1 for batch in expected)


def test_processes_share_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each position has the image that it has with one process."""
    expected = dict(key for batch in islice(batches(), 8) for key in batch)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    found: dict[int, int] = {}
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        found |= dict(key for batch in islice(batches(), 4) for key in batch)
    assert found == expected


class Draws(Dataset):
    """Numbers that Python, NumPy and PyTorch draw."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> list[float]:
        return [index, random.random(), np.random.random(), torch.rand(()).item()]


@pytest.mark.parametrize("workers", [0, 2])
def test_random_changes_follow_from_the_position(workers: int) -> None:
    def draw(seed: int, skipped: int = 0) -> list[list[float]]:
        cfg, mine = get_cfg(), batches()
        cfg.SEED, cfg.DATALOADER.NUM_WORKERS, mine.skipped = seed, workers, skipped
        loader = build_loader(cfg, Draws(), mine, lambda batch: batch)
        return [numbers for batch in islice(loader, 6 - skipped) for numbers in batch]

    torch.manual_seed(1)
    expected, state = draw(seed=1), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())  # the model's numbers are left alone
    np.random.random(5)
    assert draw(seed=1, skipped=2) == expected[4:]
    # The second time in another way, and all in ways of their own.
    assert len({numbers[k] for numbers in expected for k in (1, 2, 3)}) == 3 * len(expected)
    assert draw(seed=2)[0][1:] != expected[0][1:]


def test_there_are_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    cfg = get_cfg()
    for wanted, local_size, expected in ((16, 1, 5), (16, 2, 2), (16, 8, 1), (1, 1, 1), (0, 1, 0)):
        monkeypatch.setattr("detectron2.utils.comm.get_local_size", lambda n=local_size: n)
        cfg.DATALOADER.NUM_WORKERS = wanted
        assert loader_workers(cfg) == expected
