"""Effects against their definitions and SciPy, and what chance alone is made of."""

import numpy as np
import pytest
import scipy.stats

from dgnet_det.analysis.report.effects import (
    LEVEL,
    PERMUTATIONS,
    Untestable,
    class_effect,
    mean_ranks,
    size_effect,
)


def test_eta_squared_is_the_share_of_variance_between_classes() -> None:
    rng = np.random.default_rng(0)
    labels = ["a"] * 7 + ["b"] * 5 + ["c"] * 3
    weight = rng.normal(size=(15, 6)) + np.array([0.0] * 7 + [1.0] * 5 + [3.0] * 3)[:, None]
    effect = class_effect(weight, labels)
    for e in range(6):
        w = weight[:, e]
        groups = [w[np.array(labels) == c] for c in "abc"]
        between = sum(len(g) * (g.mean() - w.mean()) ** 2 for g in groups)
        total = ((w - w.mean()) ** 2).sum()
        assert effect.size[e] == pytest.approx(between / total)
        # η² and the F statistic of a one-way analysis of variance say the same.
        f = (between / 2) / ((total - between) / 12)
        assert f == pytest.approx(scipy.stats.f_oneway(*groups).statistic)
    assert effect.num_images == 15


def test_eta_squared_by_hand() -> None:
    # Means 1 and 3 around 2, and ±1 about the first: 8 of the 12 of all variance.
    weight = np.array([[0, 2, 0, 2, 3, 3, 3, 3]], float).T
    effect = class_effect(weight, list("aaaabbbb"))
    assert effect.size[0] == pytest.approx(8 / 12)
    assert class_effect(1 - weight, list("aaaabbbb")).size[0] == pytest.approx(8 / 12)


def test_images_without_a_class_and_single_ones_are_left_out() -> None:
    weight = np.array([[0, 2, 0, 2, 3, 3, 3, 3, 100, -50]], float).T
    effect = class_effect(weight, [*"aaaabbbb", "", "c"])
    assert effect.num_images == 8
    assert effect.size[0] == pytest.approx(8 / 12)


def test_rho_is_spearmans() -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 5, (20, 4)).astype(float)  # with ties
    areas = rng.integers(1, 8, 20).astype(float)
    weight[:, 3] = -(areas**3)
    effect = size_effect(weight, areas)
    for e in range(4):
        expected = scipy.stats.spearmanr(weight[:, e], areas).statistic
        assert effect.size[e] == pytest.approx(expected)
    assert effect.size[3] == pytest.approx(-1)
    assert effect.p[3] == 1 / (1 + PERMUTATIONS)
    assert 0 < effect.chance < 1


def test_ranks_share_ties() -> None:
    values = np.array([3.0, 1.0, 3.0, -2.0, 3.0, 1.0])
    np.testing.assert_array_equal(mean_ranks(values), scipy.stats.rankdata(values))


def test_p_of_one_edge_is_that_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(2)
    labels = ["a"] * 15 + ["b"] * 15
    for shift in (0.0, 0.6, 1.2):
        weight = rng.normal(size=(30, 1)) + shift * np.array([[0.0]] * 15 + [[1.0]] * 15)
        expected = scipy.stats.f_oneway(weight[:15, 0], weight[15:, 0]).pvalue
        assert class_effect(weight, labels).p[0] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("test", ["classes", "sizes"])
def test_chance_is_seldom_taken_for_an_effect(test: str) -> None:
    """Where nothing is to be found in 40 edges, at most 1 dataset in 20 may name one or more.
    Tested edge by edge, nearly all would."""
    rng = np.random.default_rng(3)
    named = 0
    for _ in range(40):
        weight = rng.normal(size=(16, 40))
        if test == "classes":
            effect = class_effect(weight, list("aabb" * 4))
        else:
            effect = size_effect(weight, rng.permutation(16).astype(float))
        named += bool(effect.shown().any())
        # What is named is what goes beyond what chance reaches in one dataset of 20.
        np.testing.assert_array_equal(effect.shown(), np.abs(effect.size) > effect.chance - 1e-9)
    assert named <= scipy.stats.binom.ppf(0.999, 40, LEVEL)


def test_a_true_effect_is_found_among_many_edges() -> None:
    rng = np.random.default_rng(4)
    labels = ["a", "b", "c"] * 12
    weight = rng.normal(size=(36, 50))
    weight[:, 17] += [2.0 * "abc".index(label) for label in labels]
    effect = class_effect(weight, labels)
    assert effect.shown().nonzero()[0].tolist() == [17]


def test_constant_weights_have_no_effect() -> None:
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(12, 3))
    weight[:, 1] = 0.5
    weight[:, 2] = 0.5 + 1e-8 * np.arange(12)  # rounding
    for effect in (class_effect(weight, list("ab" * 6)), size_effect(weight, np.arange(12.0))):
        assert effect.size[1:].tolist() == [0, 0]
        assert effect.p[1:].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([""] * 9, "no class has 2 images or more"),
        (["tree"] * 8 + ["bush"], "only 'tree' has 2 images or more"),
        (["tree", "bush"] * 3, "6 images are too few: 8 are needed"),
    ],
)
def test_what_classes_do_not_allow(labels: list[str], message: str) -> None:
    with pytest.raises(Untestable, match=message):
        class_effect(np.zeros((len(labels), 2)), labels)


def test_what_sizes_do_not_allow() -> None:
    with pytest.raises(Untestable, match="all images have the same area"):
        size_effect(np.zeros((9, 2)), [64.0] * 9)
    with pytest.raises(Untestable, match="5 images are too few"):
        size_effect(np.zeros((5, 2)), [1.0, 2, 3, 4, 5])
