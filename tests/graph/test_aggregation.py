import weakref
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from helpers.graphs import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st

from dgnet_det.graph import aggregation
from dgnet_det.graph.aggregation import recompute_in_backward, weighted_sum


def reference(inputs: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bk,kbchw->bchw", weights.double(), torch.stack(inputs).double())


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=100)
@given(
    k=st.integers(1, 6),
    batch=st.integers(1, 4),
    channels=st.integers(1, 9),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    formats=st.lists(st.booleans(), min_size=6, max_size=6),
    dtype=st.sampled_from(list(TOLERANCE)),
    piece=st.sampled_from([7, 64, aggregation.PIECE]),
    small=st.sampled_from([0, aggregation.SMALL]),
    open_share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_forward_and_gradients_equal_float64_einsum(
    k: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    formats: list[bool],
    dtype: torch.dtype,
    piece: int,
    small: int,
    open_share: float,
    seed: int,
    device: str,
) -> None:
    """Also where the pieces of a sum do not divide it, and where inputs differ in their format."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, channels, height, width)

    def draw(channels_last: bool) -> torch.Tensor:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        drawn = torch.randn(shape, generator=g).to(device, dtype)
        return drawn.to(memory_format=memory_format)

    inputs = [draw(channels_last).requires_grad_() for channels_last in formats[:k]]
    mask = torch.rand(batch, k, generator=g) < open_share
    weights = (torch.rand(batch, k, generator=g) * mask).to(torch.promote_types(dtype, torch.float))
    weights = weights.to(device).requires_grad_()
    grad = draw(not formats[0])

    with mock.patch.multiple(aggregation, PIECE=piece, SMALL=small):
        output = weighted_sum(inputs, weights)
        gradients = torch.autograd.grad(output, [weights, *inputs], grad, allow_unused=True)
    inputs64 = [x.detach().double().requires_grad_() for x in inputs]
    weights64 = weights.detach().double().requires_grad_()
    expected = reference(inputs64, weights64)
    expected_gradients = torch.autograd.grad(expected, [weights64, *inputs64], grad.double())

    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, **tolerance)
    for x, got, want in zip([weights, *inputs], gradients, expected_gradients, strict=True):
        # No gradient at all goes through an edge that is closed for every sample.
        got = torch.zeros_like(x) if got is None else got
        torch.testing.assert_close(got.double(), want, **tolerance)

    with torch.no_grad(), mock.patch.multiple(aggregation, PIECE=piece, SMALL=small):
        last = inputs[-1].clone()
        assert weighted_sum([*inputs[:-1], last], weights, out=last) is last
        torch.testing.assert_close(last.double(), expected, **tolerance)


def test_a_sum_that_is_not_kept_is_let_go_and_made_again() -> None:
    xs = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3)]
    weights = torch.rand(2, 3, requires_grad=True)
    conv = torch.nn.Conv2d(3, 3, 3)

    def run(keep: bool) -> tuple[list[torch.Tensor], weakref.ref]:
        total = weighted_sum(xs, weights)
        remake = nullcontext()
        if not keep:
            remake = recompute_in_backward(total, xs, weights, torch.relu_)
        with remake:
            y = conv(torch.relu_(total))
        alive = weakref.ref(total)
        del total
        is_kept = alive() is not None
        assert is_kept == keep
        return list(torch.autograd.grad(y.square().sum(), [*xs, weights, conv.weight])), alive

    for got, want in zip(run(False)[0], run(True)[0], strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device: str) -> None:
    like = {"dtype": torch.float64, "device": device, "requires_grad": True}
    inputs = [torch.randn(2, 3, 2, 2, **like) for _ in range(3)]
    weights = torch.rand(2, 3, **like)
    assert torch.autograd.gradcheck(lambda w, *x: weighted_sum(x, w), (weights, *inputs))


def test_closed_edges_are_not_read() -> None:
    x = torch.ones(2, 1, 1, 1)
    poison = torch.full_like(x, float("nan"))
    output = weighted_sum([x, poison], torch.tensor([[2.0, 0.0], [3.0, 0.0]]))
    assert output.flatten().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weight_gradient_does_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((1, 64, 32, 32), 8.0, dtype=dtype, requires_grad=True)
    weights = torch.ones(1, 1, requires_grad=True)
    weighted_sum([x], weights).backward(torch.ones_like(x))
    assert weights.grad is not None
    assert weights.grad.item() == 8.0 * x.numel()
