"""Means, deviations and intervals against numbers worked out by hand."""

import math
from itertools import pairwise

import pytest

from studies.statistics import MAX_SEEDS, T_975, paired_difference, summarize


def test_summary() -> None:
    # Deviations -2, 0, 2: variance 8 / 2.
    assert summarize([3.0, 5.0, 7.0]) == (5.0, 2.0)
    mean, std = summarize([4.0])
    assert mean == 4.0
    assert math.isnan(std)


def test_interval_of_three_pairs() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027, so 4.3027 / sqrt(3) = 2.4842.
    difference = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert difference.mean == pytest.approx(2.0)
    assert difference.half_width == pytest.approx(2.4842, abs=5e-4)
    assert difference.verdict == "no difference shown"


def test_interval_is_of_the_pairs_not_of_the_groups() -> None:
    # The groups overlap wholly; the pairs differ by 0.9, 1, 1.1: 1 ± 4.3027 · 0.1 / sqrt(3).
    difference = paired_difference([10.9, 21.0, 31.1], [10.0, 20.0, 30.0])
    assert difference.half_width == pytest.approx(0.2484, abs=5e-5)
    assert difference.verdict == "helped"
    assert paired_difference([10.0, 20.0, 30.0], [10.9, 21.0, 31.1]).verdict == "hurt"


def test_one_pair_shows_nothing() -> None:
    difference = paired_difference([5.0], [1.0])
    assert difference == (4.0, math.inf)
    assert difference.verdict == "no difference shown"


def test_quantiles() -> None:
    # With 1 and 2 degrees of freedom Student's distribution has a closed form:
    # F(t) = 1/2 + atan(t) / π, and F(t) = 1/2 + t / (2 sqrt(2 + t²)).
    assert 0.5 + math.atan(T_975[0]) / math.pi == pytest.approx(0.975, abs=1e-5)
    assert 0.5 + T_975[1] / (2 * math.sqrt(2 + T_975[1] ** 2)) == pytest.approx(0.975, abs=1e-5)
    assert MAX_SEEDS == 10
    assert all(a > b > 1.96 for a, b in pairwise(T_975))
