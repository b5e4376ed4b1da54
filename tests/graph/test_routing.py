"""Pooling, routers and thresholds, against the equations in plain Python."""

import math
import statistics

import pytest
import torch

from dgnet_det.graph.routing import (
    ROUTER_START,
    Router,
    StaticRouter,
    apply_threshold,
    average,
    position_weights,
    valid_sizes,
)


def test_valid_sizes_are_the_unpadded_ones() -> None:
    images = torch.zeros(3, 3, 8, 10)
    images[0, :, :5, :7] = torch.randn(3, 5, 7)
    images[1] = torch.randn(3, 8, 10)
    images[2, 0, 0, 4] = 1.0
    images[1, :, 2:4] = 0.0  # zeros inside an image are no padding
    sizes = valid_sizes(images)
    assert sizes is not None
    assert sizes.tolist() == [[5, 7], [8, 10], [1, 5]]
    assert valid_sizes(images[1:2]) is None


def test_the_average_is_over_the_valid_part() -> None:
    x = torch.randn(2, 4, 6, 5)
    got = average(x, position_weights(x, torch.tensor([[6, 5], [2, 3]])))
    torch.testing.assert_close(got[0], x[0].mean(dim=(1, 2)))
    torch.testing.assert_close(got[1], x[1, :, :2, :3].mean(dim=(1, 2)))
    torch.testing.assert_close(average(x, position_weights(x, None)), x.mean(dim=(2, 3)))


def test_half_precision_averages_as_single_precision_does() -> None:
    x = torch.rand(1, 4, 300, 300)
    got = average(x.half(), position_weights(x.half(), None))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, x.mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("normalised", [False, True])
def test_router_is_equation_4(normalised: bool) -> None:
    router = Router(3, 2, normalised=normalised)
    pooled = 10 * torch.randn(4, 3) + 5
    for b, alphas in enumerate(router(pooled).tolist()):
        x_b = pooled[b].tolist()
        if normalised:
            std = statistics.pstdev(x_b)
            x_b = [(x - statistics.mean(x_b)) / std for x in x_b]
        for k, alpha in enumerate(alphas):
            row = router.linear.weight[k].tolist()
            z = math.fsum(w * x for w, x in zip(row, x_b, strict=True))
            z += router.linear.bias[k].item()
            assert alpha == pytest.approx(1 / (1 + math.exp(-z)), rel=1e-5)


@pytest.mark.parametrize("kind", [Router, StaticRouter])
def test_routers_start_at_one_alpha(kind: type) -> None:
    router = kind(3, 2, normalised=True)
    torch.testing.assert_close(router(torch.zeros(1, 3)), torch.full((1, 2), ROUTER_START))


def test_static_router_is_one_weight_per_edge() -> None:
    alpha = StaticRouter(3, 2, normalised=False)(torch.randn(4, 3))
    assert alpha.shape == (4, 2)
    assert (alpha == alpha[0]).all()


def test_threshold_is_equation_5_with_a_straight_through_step() -> None:
    alpha = torch.tensor([[0.9, 0.5, 0.2]], requires_grad=True)
    tau = torch.tensor(0.5, requires_grad=True)
    opened, gate = apply_threshold(alpha, tau)
    assert opened[0].tolist() == pytest.approx([0.9, 0.5, 0])  # α = τ is open
    assert gate.tolist() == [[1, 1, 0]]
    # α·step(α - τ) with a step of derivative 1: that of an open edge in α is its true one.
    d_alpha, d_tau = torch.autograd.grad(opened.sum(), (alpha, tau), retain_graph=True)
    assert d_alpha[0].tolist() == pytest.approx([1, 1, 0.2])
    assert float(d_tau) == pytest.approx(-(0.9 + 0.5 + 0.2))
    d_alpha, d_tau = torch.autograd.grad(gate.sum(), (alpha, tau))
    assert d_alpha.tolist() == [[1, 1, 1]]
    assert float(d_tau) == -3


@pytest.mark.parametrize("tau", [torch.inf, -torch.inf])
def test_an_infinite_threshold_closes_all_or_nothing(tau: float) -> None:
    alpha = torch.tensor([0.9, 0.5], requires_grad=True)
    for values in apply_threshold(alpha, torch.tensor(tau)):
        assert values.isfinite().all()
        assert values.bool().tolist() == [tau < 0, tau < 0]
