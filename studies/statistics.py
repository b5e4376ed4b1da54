"""Paired differences over seeds, and what they allow to be said."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# Student's t, 97.5 % quantile, for 1, 2, … degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MAX_SEEDS = len(T_975) + 1

NO_DIFFERENCE = "no difference shown"


class Summary(NamedTuple):
    """Mean and sample standard deviation; the latter is NaN for one value."""

    mean: float
    std: float


class Difference(NamedTuple):
    """Mean of paired differences and the half-width of its 95 % confidence interval, infinite for
    one pair."""

    mean: float
    half_width: float

    @property
    def verdict(self) -> str:
        """``helped``, ``hurt``, or ``no difference shown`` where the interval holds 0."""
        if self.mean - self.half_width > 0:
            return "helped"
        if self.mean + self.half_width < 0:
            return "hurt"
        return NO_DIFFERENCE


def summarize(values: Sequence[float]) -> Summary:
    """Mean and standard deviation of one value per seed."""
    return Summary(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
    )


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Mean of ``values`` less ``baseline``, pair by pair, with its interval by Student's t.

    Args:
        values, baseline: one value for each seed, in the same order, of 1 to ``MAX_SEEDS`` seeds.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    mean, std = summarize(differences)
    if len(differences) == 1:
        return Difference(mean, math.inf)
    return Difference(mean, T_975[len(differences) - 2] * std / math.sqrt(len(differences)))
