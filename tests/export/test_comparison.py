"""Two detectors that find the same, and two that do not."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from dgnet_det.export.comparison import Comparison, compare_detections, same_detections
from dgnet_det.export.predictor import Description, Detector

IMAGE = np.zeros((96, 128, 3), np.uint8)
BOX, OTHER = [1.0, 2.0, 30.0, 40.0], [50.0, 50.0, 60.0, 70.0]


def fixed(
    boxes: Sequence[Sequence[float]], scores: Sequence[float], classes: Sequence[int]
) -> Detector:
    """Always finds the same."""
    found = Instances(
        (96, 128),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )
    return Detector(lambda image: found, Description(["a", "b"], "BGR", 0, 0, {}))


def test_order_and_rounding_do_not_count() -> None:
    both = fixed([BOX, OTHER], [0.9, 0.8], [0, 1])
    swapped = fixed([OTHER, [1.0, 2.0, 30.05, 40.0]], [0.8, 0.9005], [1, 0])
    result = compare_detections(both, swapped, IMAGE)
    assert result[:3] == (2, 2, 0)
    assert result.differences == pytest.approx({"boxes": 0.05, "scores": 0.0005}, rel=1e-3)
    assert same_detections([result])


@pytest.mark.parametrize(
    ("boxes", "scores", "classes", "unmatched"),
    [
        ([BOX, OTHER], [0.9, 0.8], [0, 0], 2),  # another class
        ([BOX], [0.9], [0], 1),  # one is missing
        ([], [], [], 2),
        ([BOX, BOX], [0.9, 0.9], [0, 0], 2),  # one twice
        ([BOX, [51.0, 50.0, 60.0, 70.0]], [0.9, 0.8], [0, 1], 2),
        ([BOX, OTHER], [0.9, 0.81], [0, 1], 2),
    ],
)
def test_what_differs(boxes: list, scores: list, classes: list, unmatched: int) -> None:
    both = fixed([BOX, OTHER], [0.9, 0.8], [0, 1])
    result = compare_detections(both, fixed(boxes, scores, classes), IMAGE)
    assert result.unmatched == unmatched
    assert not same_detections([result])


def test_one_in_a_hundred_may_be_unmatched() -> None:
    assert same_detections([Comparison(100, 99, 1, {})])
    assert not same_detections([Comparison(20, 19, 1, {}), Comparison(0, 0, 0, {})])
