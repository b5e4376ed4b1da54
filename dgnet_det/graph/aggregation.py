"""The weighted sum over a node's incoming edges, the argument of f_j in Eq. 3, and its gradients.

Both directions only move memory: each input is read once and the sum is written once. What the
backward pass needs is kept anyway: ∂x_i = Σ_j α_ij g_j and ∂α_ij = ⟨x_i, g_j⟩, where g_j is the
gradient of node j's sum.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# On a CPU a sum is made in pieces of this many elements per thread, which stay in a core's cache
# while the inputs stream past.
PIECE = 2**19
# Where an image's feature map has at most this many elements, the calls for each image take longer
# than the memory: one operator per input then sums the whole batch, as on a GPU.
SMALL = 2**17


def weighted_sum(inputs: Sequence[Tensor], weights: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Σ_i weights[b, i] · inputs[i][b], differentiable in the inputs and in the weights.

    A closed edge has weight 0: an input whose edge is closed for all images is not read on a CPU,
    and gets no gradient.

    Args:
        inputs: k tensors of one shape [B, C, H, W].
        weights: [B, k].
        out: where to write the sum; it may be the last of the inputs. Only without gradients.

    Returns:
        [B, C, H, W], of the first input's dtype and memory format; ``out`` if given.
    """
    if is_recording(inputs[0]):
        dtype = inputs[0].dtype
        factors = weights.to(dtype)[:, :, None, None, None].unbind(1)
        products = [f * x.to(dtype) for f, x in zip(factors, inputs, strict=True)]
        return reduce(torch.add, products)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (weights, *inputs)):
        return _WeightedSum.apply(weights, *inputs)
    return _sum(inputs, weights, out)


def is_recording(x: Tensor) -> bool:
    """Whether a trace, a compiler or a fake tensor records a program, which must not depend on the
    values of ``x``."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or type(x) is not Tensor


@contextmanager
def recompute_in_backward(
    total: Tensor, inputs: Sequence[Tensor], weights: Tensor, activation: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Inside, autograd does not keep ``total``, but computes activation(Σ weights · inputs) anew in
    the backward pass.

    So a node keeps one full-size tensor, its output, as it does in a static network. Whatever else
    is saved inside is saved once more behind these hooks, where the caller's own hooks
    (checkpointing, offloading) see it.
    """
    where = total.data_ptr(), total.shape  # a reference would keep it
    kept: list[Tensor] = [weights.detach(), *(x.detach() for x in inputs)]
    first, uses, asked = len(kept), 0, 0
    latest: Tensor | None = None
    saved: Any = None

    def pack(tensor: Tensor) -> int:
        nonlocal uses
        if (tensor.data_ptr(), tensor.shape) == where:
            uses += 1
            return 0
        # The tensor itself would close a cycle with its own autograd node, which is never freed.
        kept.append(tensor.detach())
        return len(kept) - 1

    def unpack(place: int) -> Tensor:
        nonlocal asked, latest
        if place:
            return saved.saved_tensors[place]
        if latest is None:
            weights, *inputs = saved.saved_tensors[:first]
            with torch.no_grad():
                latest = activation(weighted_sum(inputs, weights))
        result, asked = latest, asked + 1
        if asked % uses == 0:  # the last of its users lets it go
            latest = None
        return result

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
    saved = _Saved.apply(torch.zeros((), requires_grad=True), *kept).grad_fn
    kept.clear()


class _Saved(torch.autograd.Function):
    """An autograd node that only saves tensors."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.clone()


class _WeightedSum(torch.autograd.Function):
    """Autograd of the plain expression would keep one full-size product per edge."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *inputs)
        return _sum(inputs, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *inputs = ctx.saved_tensors
        needs_weights, *needs_inputs = ctx.needs_input_grad
        grad_weights = _products(inputs, grad).to(weights.dtype) if needs_weights else None
        grad_inputs: list[Tensor | None] = []
        for x, factors, needed in zip(inputs, weights.unbind(1), needs_inputs, strict=True):
            if not needed or (grad.device.type == "cpu" and not factors.any()):
                grad_inputs.append(None)
            elif grad.device.type == "cpu" and bool((factors == 1).all()):
                grad_inputs.append(grad.to(x.dtype))
            else:
                factors = factors.to(grad.dtype)[:, None, None, None]
                grad_inputs.append((grad * factors).to(x.dtype))
        return grad_weights, *grad_inputs


def _sum(inputs: Sequence[Tensor], weights: Tensor, out: Tensor | None = None) -> Tensor:
    if out is None:
        out = torch.empty_like(inputs[0], memory_format=memory_format(inputs[0]))
    # From the last on, which `out` may be.
    inputs, weights = inputs[::-1], weights.flip(1)
    if _in_one_operator(out):
        on_cpu = out.device.type == "cpu"  # elsewhere, to ask would be to wait
        is_open = weights.ne(0).any(dim=0).tolist() if on_cpu else [True] * len(inputs)
        scales = weights.to(out.dtype)[:, :, None, None, None].unbind(1)
        terms = [(x.to(out.dtype), s) for x, s, o in zip(inputs, scales, is_open, strict=True) if o]
        if not terms:
            return out.zero_()
        torch.mul(*terms[0], out=out)
        for x, scale in terms[1:]:
            out.addcmul_(x, scale)
        return out
    piece = PIECE * torch.get_num_threads()
    flat_out, *flat = _flatten_alike([out, *inputs])
    for b, row in enumerate(weights.tolist()):
        in_place = out is inputs[0] and row[0] == 1
        terms = [(x[b].split(piece), w) for x, w in zip(flat, row, strict=True) if w][in_place:]
        for k, part in enumerate(flat_out[b].split(piece)):
            if not (terms or in_place):
                part.zero_()
            for n, (pieces, w) in enumerate(terms):
                if n or in_place:
                    part.add_(pieces[k], alpha=w)
                else:
                    torch.mul(pieces[k], w, out=part)
    return out


def _products(inputs: Sequence[Tensor], grad: Tensor) -> Tensor:
    """⟨inputs[i][b], grad[b]⟩, [B, k], float32 at least: float16 would overflow."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    flat_grad, *flat_inputs = _flatten_alike([grad, *inputs])
    if _in_one_operator(grad):
        g = flat_grad.to(dtype)
        return torch.stack([torch.linalg.vecdot(x.to(dtype), g) for x in flat_inputs], dim=1)
    piece = PIECE * torch.get_num_threads()
    totals = torch.zeros(grad.shape[0], len(inputs), dtype=torch.float64)
    for total, g, *xs in zip(totals, flat_grad, *flat_inputs, strict=True):
        pieces = [x.split(piece) for x in xs]
        for k, part in enumerate(g.split(piece)):
            part = part.to(dtype)
            total += torch.stack([torch.dot(x[k].to(dtype), part) for x in pieces])
    return totals.to(dtype)


def _in_one_operator(x: Tensor) -> bool:
    return x.device.type != "cpu" or x[:1].numel() <= SMALL


def memory_format(x: Tensor) -> torch.memory_format:
    """``torch.channels_last`` where ``x`` [B, C, H, W] is laid out so, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _flatten_alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [B, C, H, W] as [B, C·H·W] in the memory order and dtype of the first one: views,
    except of those that have another."""
    order = memory_format(tensors[0])
    alike = [x.to(tensors[0].dtype).contiguous(memory_format=order) for x in tensors]
    if order == torch.channels_last:
        alike = [x.permute(0, 2, 3, 1) for x in alike]
    return [x.flatten(1) for x in alike]
