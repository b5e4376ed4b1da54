"""Importance weights against torch's Gumbel-Softmax and the written-out bypass, and the
RouterNet."""

import math

import pytest
import torch
import torch.nn.functional as F

from dgnet_det.drnet.routing import RouterNet, bypass, soften

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.1, 0.0, 0.3]])


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_soft_weights_are_torchs_gumbel_softmax_with_the_same_noise(temperature: float) -> None:
    torch.manual_seed(3)
    weights = soften(LOGITS, temperature, noise=1.0)
    torch.manual_seed(3)
    torch.testing.assert_close(weights, F.gumbel_softmax(LOGITS, tau=temperature))
    without = soften(LOGITS, temperature, noise=0.0)
    torch.testing.assert_close(without, (LOGITS / temperature).softmax(dim=1))


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.3, 0.34, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_bypass_by_hand(temperature: float, threshold: float) -> None:
    found = bypass(LOGITS, temperature, threshold)
    for row, logits in zip(found.tolist(), LOGITS.tolist(), strict=True):
        powers = [math.exp(x / temperature) for x in logits]
        weights = [p / sum(powers) for p in powers]
        kept = [w if w >= threshold or w == max(weights) else 0.0 for w in weights]
        assert row == pytest.approx([w / sum(kept) for w in kept], rel=1e-5)
        assert [w == 0 for w in row] == [w == 0 for w in kept]


def test_a_router_starts_with_its_preference_for_every_image() -> None:
    router = RouterNet(32, 3, 2, preference=2.0)
    assert router(torch.randn(5, 32)).tolist() == [[[2.0, 0.0]] * 3] * 5


def test_a_router_reads_a_normalised_average() -> None:
    router = RouterNet(6, 2, 3, preference=0.0)
    torch.nn.init.normal_(router.linear.weight)
    average = torch.randn(4, 6)
    mean, std = average.mean(dim=1, keepdim=True), average.std(dim=1, correction=0, keepdim=True)
    hidden = torch.relu((average - mean) / std @ router.hidden.weight.T + router.hidden.bias)
    expected = (hidden @ router.linear.weight.T).reshape(4, 2, 3)
    torch.testing.assert_close(router(average), expected, rtol=1e-3, atol=1e-4)
