"""Which edges' weights go with what an image shows or with its size, and which only seem to."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PERMUTATIONS = 999
LEVEL = 0.05  # probability of naming any edge at all where there is no relation
MIN_IMAGES = 8
MIN_PER_CLASS = 2
ROUNDING = 1e-6  # a weight that moves by less over the images is constant


class Effect(NamedTuple):
    """How a property of the images and the weight of each of E edges go together.

    Attributes:
        size: [E], of the effect; 0 where the weight is constant.
        p: [E], the probability of an effect as large as this or larger in *any* edge, where the
            property and the weights have nothing to do with each other.
        chance: the absolute effect that is reached with probability :data:`LEVEL` there.
        num_images: images that were used.
    """

    size: np.ndarray
    p: np.ndarray
    chance: float
    num_images: int

    def shown(self) -> np.ndarray:
        """[E] bool: the edges for which chance is no good explanation."""
        return self.p <= LEVEL


class Untestable(ValueError):
    """The images do not allow the question; the message says why."""


def class_effect(weight: np.ndarray, labels: Sequence[str]) -> Effect:
    """η², the share of the variance of each edge's weight that lies between classes: 0 if all
    classes have the same mean, 1 if images of one class have one weight.

    Args:
        weight: [n, E].
        labels: the class of each image, empty if it has none. Those images, and classes with fewer
            than :data:`MIN_PER_CLASS` images, are left out.

    Raises:
        Untestable: too few classes or images are left.
    """
    counts = Counter(labels)
    classes = [name for name in counts if name and counts[name] >= MIN_PER_CLASS]
    rows = [k for k, label in enumerate(labels) if label in classes]
    if len(classes) < 2:
        what = {0: "no class has", 1: f"only {[*classes, ''][0]!r} has"}[len(classes)]
        raise Untestable(f"{what} {MIN_PER_CLASS} images or more")
    _check_number(len(rows))
    # Orthonormal: the squared lengths of projections onto the columns add up to the variance
    # between classes.
    groups = np.array([[labels[k] == name for name in classes] for k in rows], float)
    return _test(weight[rows], groups / np.sqrt(groups.sum(axis=0)))


def size_effect(weight: np.ndarray, areas: Sequence[float]) -> Effect:
    """Spearman's ρ of each edge's weight and the images' area: 1 if the weight rises with every
    step in size, -1 if it falls.

    Args:
        weight: [n, E].
        areas: of the images.

    Raises:
        Untestable: there are too few images, or they have one size.
    """
    _check_number(len(areas))
    if len(set(areas)) == 1:
        raise Untestable("all images have the same area")
    ranks = np.array([mean_ranks(column) for column in _varying(weight).T]).T
    of_areas = _standardised(mean_ranks(np.asarray(areas))[:, None])
    effect = _test(ranks, of_areas)
    return effect._replace(size=(of_areas.T @ _standardised(ranks))[0], chance=effect.chance**0.5)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of values [n], from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _test(values: np.ndarray, design: np.ndarray) -> Effect:
    """The share of the variance of ``values`` [n, E] that lies in the space of the orthonormal
    columns of ``design`` [n, k], with p from permutations of the images.

    The effect of a permutation is that of its strongest edge, so that p holds for all edges
    together, however they depend on each other (Westfall and Young's single-step maximum).
    """
    values = _standardised(_varying(values))

    def shares(rows: np.ndarray) -> np.ndarray:
        return ((rows.T @ values) ** 2).sum(axis=0)

    size = shares(design)
    generator = np.random.default_rng(0)
    strongest = np.array([shares(generator.permutation(design)).max() for _ in range(PERMUTATIONS)])
    reached = (strongest[:, None] >= size - 1e-9).sum(axis=0)
    p = (1 + reached) / (1 + PERMUTATIONS)
    chance = np.quantile(strongest, 1 - LEVEL, method="higher")
    return Effect(size, np.where(size > 0, p, 1.0), float(chance), len(values))


def _varying(values: np.ndarray) -> np.ndarray:
    """The same with constant columns free from rounding."""
    return np.where(np.ptp(values, axis=0) > ROUNDING, values, 0)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and length 1; constant ones are 0."""
    centred = values - values.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=0)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)


def _check_number(count: int) -> None:
    if count < MIN_IMAGES:
        raise Untestable(f"{count} images are too few: {MIN_IMAGES} are needed")
