"""The weighted sum over a node's incoming edges: the argument of f_j in Eq. 3."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather(inputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ_i weights[b, i] · inputs[i][b], differentiable in the inputs and in the weights.

    Args:
        inputs: k tensors of one shape [B, C, H, W].
        weights: [B, k].

    Returns:
        A new tensor [B, C, H, W] of the first input's dtype and memory format.
    """
    if torch.is_grad_enabled():
        return _Gather.apply(weights, *inputs)
    return _weighted_sum(inputs, weights)


def gather_open(inputs: Sequence[Tensor | None], rows: Sequence[Sequence[float]]) -> Tensor:
    """:func:`gather` for inference that reads only the inputs behind open edges. Not
    differentiable.

    Args:
        inputs: k tensors [B, C, H, W]. One that no open edge reads may be None.
        rows: B rows of k weights. A closed edge has weight 0. A row without an open edge has no
            place in the result.

    Returns:
        A new tensor [number of rows with an open edge, C, H, W].
    """
    fed = [b for b, row in enumerate(rows) if any(row)]
    like = next(x for x in inputs if x is not None)
    total = torch.empty_like(like[: len(fed)])
    for position, b in enumerate(fed):
        (first, weight), *others = [(i, w) for i, w in enumerate(rows[b]) if w]
        # In-place and sample by sample: one pass over each input that is read, no temporary.
        torch.mul(inputs[first][b], weight, out=total[position])  # type: ignore[index]
        for i, w in others:
            total[position].add_(inputs[i][b], alpha=w)  # type: ignore[index]
    return total


def _weighted_sum(inputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    weights = weights.to(inputs[0].dtype)
    total = inputs[0] * _per_sample(weights, 0)
    for i, x in enumerate(inputs[1:], start=1):
        total.addcmul_(x.to(total.dtype), _per_sample(weights, i))
    return total


def _per_sample(weights: Tensor, i: int) -> Tensor:
    return weights[:, i, None, None, None]


class _Gather(torch.autograd.Function):
    """Autograd of a plain sum keeps or makes a full-size product per edge. The inputs are kept
    anyway, and suffice."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *inputs)
        return _weighted_sum(inputs, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *inputs = ctx.saved_tensors
        needs_weights, *needs_inputs = ctx.needs_input_grad
        grad_weights = None
        if needs_weights:
            # float16 would overflow in ⟨x, g⟩; float64 must stay float64 for gradcheck.
            dtype = torch.promote_types(grad.dtype, torch.float32)
            g = grad.flatten(1).to(dtype)
            products = [torch.linalg.vecdot(x.flatten(1).to(dtype), g) for x in inputs]
            grad_weights = torch.stack(products, dim=1).to(weights.dtype)
        scales = weights.to(grad.dtype)
        grad_inputs = [
            (grad * _per_sample(scales, i)).to(x.dtype) if needed else None
            for i, (x, needed) in enumerate(zip(inputs, needs_inputs, strict=True))
        ]
        return grad_weights, *grad_inputs
