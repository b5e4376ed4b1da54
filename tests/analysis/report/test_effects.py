"""Effects against their definitions and SciPy's other tests, and what chance alone is made of."""

import numpy as np
import pytest
import scipy.stats

from dgnet_det.analysis.report.effects import LEVEL, Untestable, class_effect, size_effect


def test_class_effect_is_the_share_of_variance_of_the_ranks() -> None:
    rng = np.random.default_rng(0)
    labels = ["a"] * 7 + ["b"] * 5 + ["c"] * 6
    weight = rng.normal(size=(18, 4)) + np.array([0.0] * 7 + [1.0] * 5 + [3.0] * 6)[:, None]
    weight[:, 3] = weight[:, 3].round()  # ties
    effect = class_effect(weight, labels)
    assert effect.num_images == 18
    for e in range(4):
        ranks = scipy.stats.rankdata(weight[:, e])
        groups = [ranks[np.array(labels) == c] for c in "abc"]
        f = scipy.stats.f_oneway(*groups).statistic
        # η² and the F statistic of a one-way analysis of variance say the same.
        assert effect.size[e] == pytest.approx(2 * f / (2 * f + 15))


def test_class_effect_by_hand() -> None:
    # Ranks 1 to 5 and 6 to 10: means 3 and 8 around 5.5, 62.5 of the 82.5 of all variance.
    weight = np.arange(10.0)[:, None] ** 3
    assert class_effect(weight, list("aaaaabbbbb")).size[0] == pytest.approx(62.5 / 82.5)


def test_images_without_a_class_and_rare_ones_are_left_out() -> None:
    weight = np.array([[*range(10), 100, -50]], float).T
    effect = class_effect(weight, [*"aaaaabbbbb", "", "c"])
    assert effect.num_images == 10
    assert effect.size[0] == pytest.approx(62.5 / 82.5)


def test_size_effect_is_the_correlation_of_ranks() -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 5, (20, 4)).astype(float)  # with ties
    areas = rng.integers(1, 8, 20).astype(float)
    weight[:, 3] = -(areas**3)
    effect = size_effect(weight, areas)
    for e in range(4):
        ranks = [scipy.stats.rankdata(x) for x in (weight[:, e], areas)]
        assert effect.size[e] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert effect.size[3] == pytest.approx(-1)
    assert effect.p[3] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("test", ["classes", "sizes"])
def test_chance_is_seldom_taken_for_an_effect(test: str) -> None:
    """Where nothing is to be found in 40 edges, at most 1 dataset in 20 may name one or more.
    Tested edge by edge, nearly all would."""
    rng = np.random.default_rng(3)
    named = 0
    for _ in range(60):
        weight = rng.normal(size=(20, 40))
        if test == "classes":
            effect = class_effect(weight, list("aabb" * 5))
        else:
            effect = size_effect(weight, rng.permutation(20).astype(float))
        named += bool(effect.shown().any())
    assert named <= scipy.stats.binom.ppf(0.999, 60, LEVEL)


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
    nothing_varies = size_effect(weight[:, 1:], np.arange(12.0))
    assert not nothing_varies.shown().any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([""] * 9, "no class has 5 images or more"),
        (["tree"] * 8 + ["bush"], "only 'tree' has 5 images or more"),
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
