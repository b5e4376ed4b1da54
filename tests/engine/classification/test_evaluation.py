"""Top-1 and top-5 against a count by hand."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dgnet_det.engine.classification.evaluation import count_hits, evaluate

# Best five classes, in order: 6 5 4 3 2; 0 1 2 3 4; 3 0 6 1 5; 2 6 0 4 1.
LOGITS = torch.tensor(
    [
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
        [5.0, 3.0, 0.0, 9.0, 1.0, 2.0, 4.0],
        [4.0, 2.0, 9.0, 0.0, 3.0, 1.0, 5.0],
    ]
)
# Fifth best; outside; best; fourth best.
LABELS = torch.tensor([2, 5, 3, 4])


class FromPixels(nn.Module):
    """Reads its logits off the images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return images[:, 0, 0]


def test_hits_are_counted_by_hand() -> None:
    assert count_hits(LOGITS, LABELS).tolist() == [1, 3]


def test_fewer_than_five_classes() -> None:
    assert count_hits(LOGITS[:, :3], torch.tensor([0, 0, 0, 0])).tolist() == [2, 4]


def test_evaluate_sums_over_uneven_batches() -> None:
    images = LOGITS[:, None, None, :]
    data = [(images[i], int(LABELS[i])) for i in range(4)]
    model = FromPixels().train()
    result = evaluate(model, DataLoader(data, batch_size=3), torch.device("cpu"))
    assert result == pytest.approx({"top1": 25.0, "top5": 75.0})
    assert model.training
