"""Whether two detectors find the same in an image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from dgnet_det.export.predictor import Detector, tensors_of

# By how much the same detection may differ. Boxes are in pixels of the resized image.
TOLERANCES = {"boxes": 0.1, "scores": 1e-3, "masks": 1e-2, "heatmaps": 1e-2}
# Rounding decides whether a detector keeps a detection at the score threshold, or one beside a
# better one. So a hundredth of all detections may be on one side alone.
MAX_UNMATCHED = 0.01


class Comparison(NamedTuple):
    """The detections of two detectors in one image."""

    expected: int  # of the first detector
    found: int  # of the second
    unmatched: int  # of both, those that the other detector does not have
    differences: dict[str, float]  # the largest of the others, by the names of TOLERANCES


def compare_detections(expected: Detector, other: Detector, image: np.ndarray) -> Comparison:
    """Compare what two detectors find in an image, [H, W, 3] uint8 BGR.

    Two detections match if they are of one class, and each is the other's nearest within
    :data:`TOLERANCES`.
    """
    a, b = (
        {
            name: tensor.cpu().reshape(len(tensor), -1 if len(tensor) else 1)
            for name, tensor in tensors_of(detector.inference(detector.prepare(image))).items()
        }
        for detector in (expected, other)
    )
    num = len(a["boxes"]), len(b["boxes"])
    names = [name for name in TOLERANCES if name in a]
    if 0 in num:
        return Comparison(*num, sum(num), dict.fromkeys(names, 0.0))
    apart = {name: (a[name][:, None] - b[name]).abs().amax(dim=2) for name in names}
    distance = torch.stack([apart[name] / TOLERANCES[name] for name in names]).amax(dim=0)
    distance[a["classes"] != b["classes"].T] = torch.inf
    rows, nearest = torch.arange(num[0]), distance.argmin(dim=1)
    same = (distance[rows, nearest] <= 1) & (distance.argmin(dim=0)[nearest] == rows)
    return Comparison(
        *num,
        unmatched=sum(num) - 2 * int(same.sum()),
        differences={
            name: max(x[rows, nearest][same].tolist(), default=0.0) for name, x in apart.items()
        },
    )


def same_detections(comparisons: Sequence[Comparison]) -> bool:
    """Whether no more than :data:`MAX_UNMATCHED` of the detections are unmatched."""
    unmatched = sum(comparison.unmatched for comparison in comparisons)
    total = sum(comparison.expected + comparison.found for comparison in comparisons)
    return unmatched <= MAX_UNMATCHED * total
