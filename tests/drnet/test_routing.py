"""The selection against torch's Gumbel-Softmax, and the RouterNet."""

import pytest
import torch
import torch.nn.functional as F

from dgnet_det.drnet.routing import RouterNet, select

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.1, 0.0, 0.3]])


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_training_is_torchs_straight_through_gumbel_softmax_with_the_same_noise(
    temperature: float,
) -> None:
    ours, theirs = (LOGITS.repeat(50, 1).requires_grad_() for _ in range(2))
    torch.manual_seed(3)
    selected = select(ours, temperature)
    torch.manual_seed(3)
    expected = F.gumbel_softmax(theirs / temperature, tau=1.0, hard=True)
    torch.testing.assert_close(selected, expected)
    slopes = torch.randn_like(expected)
    (selected * slopes).sum().backward()
    (expected * slopes).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_branch_is_drawn_with_the_probability_of_its_softmax() -> None:
    torch.manual_seed(0)
    drawn = select(LOGITS[:1].repeat(20000, 1), 0.7).mean(dim=0)
    expected = (LOGITS[0] / 0.7).softmax(dim=0)
    torch.testing.assert_close(drawn, expected, atol=0.015, rtol=0)


def test_inference_takes_the_largest_logit_and_low_temperatures_come_to_it() -> None:
    selected = select(LOGITS, None)
    assert selected.tolist() == [[1, 0, 0], [0, 0, 1]]
    torch.manual_seed(0)
    for _ in range(20):
        assert torch.equal(select(LOGITS, 0.005), selected)


def test_a_router_starts_with_its_preference_for_every_image() -> None:
    router = RouterNet(32, 2, preference=3.0)
    assert router.hidden.out_features == 8
    assert RouterNet(320, 2, preference=3.0).hidden.out_features == 20
    assert router(torch.randn(5, 32)).tolist() == [[3.0, 0.0]] * 5


def test_a_router_reads_a_normalised_average() -> None:
    router = RouterNet(6, 2, preference=0.0)
    torch.nn.init.normal_(router.linear.weight)
    average = torch.randn(4, 6)
    mean, std = average.mean(dim=1, keepdim=True), average.std(dim=1, correction=0, keepdim=True)
    hidden = torch.relu((average - mean) / std @ router.hidden.weight.T + router.hidden.bias)
    torch.testing.assert_close(
        router(average), hidden @ router.linear.weight.T, rtol=1e-3, atol=1e-4
    )
