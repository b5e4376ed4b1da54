"""Which edges' weights go with what an image shows or with its size, and which only seem to."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    the ranks): 0 if all classes have the same mean rank. And p by Kruskal and Wallis.

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
    used = np.isin(labels, classes)
    label = np.array(labels)[used]
    effect = _effect(
        weight[used], lambda w: scipy.stats.kruskal(*(w[label == name] for name in classes))
    )
    return effect._replace(size=effect.size / (len(label) - 1))


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
    return _effect(weight, lambda w: scipy.stats.spearmanr(w, areas))


def varying(weight: np.ndarray) -> np.ndarray:
    """The places of the edges whose weight, [n, E], is not the same in all images."""
    return np.flatnonzero(np.ptp(weight, axis=0) > ROUNDING)


def _effect(weight: np.ndarray, test: Callable[[np.ndarray], Any]) -> Effect:
    """The statistic and the adjusted p of a test of every edge's weight."""
    varies, (num_images, num_edges) = varying(weight), weight.shape
    size, p = np.zeros(num_edges), np.ones(num_edges)
    tests = [test(weight[:, e]) for e in varies]
    if tests:
        size[varies] = [result.statistic for result in tests]
        p[varies] = scipy.stats.false_discovery_control([result.pvalue for result in tests])
    return Effect(size, p, num_images)
