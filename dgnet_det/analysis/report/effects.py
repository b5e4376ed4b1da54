"""Which edges' weights go with what an image shows or with its size, and which only seem to."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.05  # share of the named edges that may be named by chance
MIN_IMAGES = 8
MIN_PER_CLASS = 5  # for the Kruskal-Wallis test's p
ROUNDING = 1e-6  # a weight that moves by less over the images is constant
# The name and the symbol of the size of each test's effects.
TESTS = {"classes": ("eta_squared", "η²"), "sizes": ("rho", "ρ")}


class Effect(NamedTuple):
    """How a property of the images and the weight of each of E edges go together."""

    size: np.ndarray  # [E]; 0 where the weight is constant
    # [E], adjusted by Benjamini and Hochberg: of the edges with p up to some level, a share of at
    # most that level is expected to be there by chance.
    p: np.ndarray
    num_images: int

    def shown(self) -> np.ndarray:
        """[E] bool: the edges for which chance is no good explanation."""
        return self.p <= LEVEL


class Untestable(ValueError):
    """The images do not allow the question; the message says why."""


def class_effect(weight: np.ndarray, labels: Sequence[str]) -> Effect:
    """The share of the variance of the ranks of each edge's weight that lies between classes (η² of
    the ranks), and p by Kruskal and Wallis: 0 if all classes have the same mean rank.

    Args:
        weight: [n, E].
        labels: the class of each image, empty if it has none. Those images, and classes with fewer
            than :data:`MIN_PER_CLASS` images, are left out.

    Raises:
        Untestable: fewer than two classes are left.
    """
    counts = Counter(labels)
    classes = [name for name in counts if name and counts[name] >= MIN_PER_CLASS]
    if len(classes) < 2:
        what = {0: "no class has", 1: f"only {[*classes, ''][0]!r} has"}[len(classes)]
        raise Untestable(f"{what} {MIN_PER_CLASS} images or more")
    groups = [weight[np.array(labels) == name] for name in classes]
    used = np.concatenate(groups)
    varies = varying(used)
    tests = [scipy.stats.kruskal(*(group[:, e] for group in groups)) for e in varies]
    sizes = [test.statistic / (len(used) - 1) for test in tests]
    return _effect(weight.shape[1], varies, sizes, [test.pvalue for test in tests], len(used))


def size_effect(weight: np.ndarray, areas: Sequence[float]) -> Effect:
    """Spearman's ρ of each edge's weight and the images' area, and its p: 1 if the weight rises
    with every step in size, -1 if it falls.

    Args:
        weight: [n, E].
        areas: of the images.

    Raises:
        Untestable: there are too few images, or they have one size.
    """
    if len(areas) < MIN_IMAGES:
        raise Untestable(f"{len(areas)} images are too few: {MIN_IMAGES} are needed")
    if len(set(areas)) == 1:
        raise Untestable("all images have the same area")
    varies = varying(weight)
    tests = [scipy.stats.spearmanr(weight[:, e], areas) for e in varies]
    sizes, ps = [test.statistic for test in tests], [test.pvalue for test in tests]
    return _effect(weight.shape[1], varies, sizes, ps, len(areas))


def varying(weight: np.ndarray) -> np.ndarray:
    """The places of the edges whose weight, [n, E], is not the same in all images."""
    return np.flatnonzero(np.ptp(weight, axis=0) > ROUNDING)


def _effect(
    num_edges: int, varies: np.ndarray, sizes: list[float], ps: list[float], num_images: int
) -> Effect:
    size, p = np.zeros(num_edges), np.ones(num_edges)
    size[varies] = sizes
    if len(varies):
        p[varies] = scipy.stats.false_discovery_control(ps)
    return Effect(size, p, num_images)
