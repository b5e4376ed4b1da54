import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgnet_det.aggregation import gather, gather_open


def reference(inputs: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bk,kbchw->bchw", weights.double(), torch.stack(inputs).double())


@settings(deadline=None, max_examples=40)
@given(
    k=st.integers(1, 6),
    batch=st.integers(1, 4),
    channels=st.integers(1, 9),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_forward_and_gradients_equal_float64_einsum(
    k: int, batch: int, channels: int, height: int, width: int, channels_last: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    inputs = [
        torch.randn(batch, channels, height, width, generator=g)
        .to(memory_format=memory_format)
        .requires_grad_()
        for _ in range(k)
    ]
    mask = torch.rand(batch, k, generator=g) < 0.6
    weights = (torch.rand(batch, k, generator=g) * mask).requires_grad_()
    grad = torch.randn(batch, channels, height, width, generator=g)

    output = gather(inputs, weights)
    gradients = torch.autograd.grad(output, [weights, *inputs], grad)
    inputs64 = [x.detach().double().requires_grad_() for x in inputs]
    weights64 = weights.detach().double().requires_grad_()
    expected = reference(inputs64, weights64)
    expected_gradients = torch.autograd.grad(expected, [weights64, *inputs64], grad.double())

    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)

    fed = mask.any(dim=1)
    if fed.any():
        with torch.no_grad():
            opened = gather_open(inputs, weights.tolist())
        torch.testing.assert_close(opened.double(), expected[fed], rtol=1e-5, atol=1e-5)


def test_gradcheck() -> None:
    inputs = [torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, *x: gather(x, w), (weights, *inputs))


def test_closed_edges_are_not_read() -> None:
    x = torch.ones(2, 1, 1, 1)
    poison = torch.full_like(x, float("nan"))
    output = gather_open([x, poison, None], [[2.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert output.flatten().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weight_gradient_does_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((1, 64, 32, 32), 8.0, dtype=dtype, requires_grad=True)
    weights = torch.ones(1, 1, requires_grad=True)
    gather([x], weights).backward(torch.ones_like(x))
    assert weights.grad is not None
    assert weights.grad.item() == 8.0 * x.numel()
