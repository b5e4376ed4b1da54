"""The weighted sum over a node's incoming edges, the argument of f_j in Eq. 3, and its gradients.

Both directions only move memory. Forward, node j gathers Σ_i α_ij x_i, reading each x_i once and
writing once. Backward, node i gathers Σ_j α_ij g_j from the later nodes, g_j being the gradient of
node j's sum, instead of having autograd add up one full-size product per edge; and ∂α_ij, which is
⟨x_i, g_j⟩, needs nothing that is not kept anyway.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# On a CPU a sum is made in pieces of this many elements per thread, which stay in a core's cache
# while the inputs stream past.
PIECE = 2**19


class Sent(NamedTuple):
    """A node's output on its way along the node's edges: what :func:`gather` takes."""

    # [B, C, H, W], without autograd history.
    x: Tensor
    # Autograd's thread from a gathered sum back to the node; None where no gradient is wanted.
    token: Tensor | None
    # The gradients g_j and weights α_ij of the sums that were read, filled in the backward pass.
    gradients: dict[Any, tuple[Tensor, Tensor]]


def send(x: Tensor, pool: Tensor | None = None) -> tuple[Sent, Tensor | None]:
    """Send a node's output along its edges, and average it for its router.

    Args:
        x: [B, C, H, W].
        pool: averaging weights from :func:`.routing.averaging_weights`, [B, H·W]; None if there is
            no router to read the average.

    Returns:
        What :func:`gather` takes; the average, [B, C], None without ``pool``.
    """
    if not (torch.is_grad_enabled() and x.requires_grad) or torch.jit.is_tracing():
        return Sent(x, None, {}), None if pool is None else _average(x, pool)
    gradients: dict[Any, tuple[Tensor, Tensor]] = {}
    token, average = _Send.apply(x, pool, gradients)
    return Sent(x.detach(), token, gradients), average


def gather(inputs: Sequence[Sent], weights: Tensor) -> Tensor:
    """Σ_i weights[b, i] · x_i[b], differentiable in the inputs and in the weights.

    Args:
        inputs: what k nodes sent, all of one shape [B, C, H, W].
        weights: [B, k].

    Returns:
        A new tensor [B, C, H, W] of the first input's dtype and memory format.
    """
    tokens = [sent.token for sent in inputs]
    differentiable = weights.requires_grad or any(token is not None for token in tokens)
    if torch.is_grad_enabled() and differentiable and not torch.jit.is_tracing():
        return _Gather.apply(weights, inputs, *tokens)
    return _weighted_sum([sent.x for sent in inputs], weights)


def gather_open(
    inputs: Sequence[Tensor | None], rows: Sequence[Sequence[float]], *, into_last: bool = False
) -> Tensor:
    """:func:`gather` for inference that reads only the inputs behind open edges. Not
    differentiable.

    On a CPU the pages of a new tensor cost more than the sum itself. So there the result lies in a
    workspace that the next call in the same thread writes over.

    Args:
        inputs: k tensors [B, C, H, W]. One that no open edge reads may be None.
        rows: B rows of k weights. A closed edge has weight 0. A row without an open edge has no
            place in the result.
        into_last: write over the last of ``inputs`` instead, for a result that lasts. Every row
            must have an open edge.

    Returns:
        [number of rows with an open edge, C, H, W].
    """
    columns = list(zip(*rows, strict=True))
    fed = [b for b, row in enumerate(rows) if any(row)]
    keep: Sequence[float] = [0.0] * len(rows)
    given = [(x, column) for x, column in zip(inputs, columns, strict=True) if x is not None]
    if into_last:
        total, keep = given.pop()
    else:
        total = _workspace.empty_like(given[0][0], len(fed))
    flat_total, *flat = _flatten_alike([total, *(x for x, _ in given)])
    for position, b in enumerate(fed):
        weights = [column[b] for _, column in given]
        _write_sum(flat_total[position], [x[b] for x in flat], weights, keep=keep[b])
    return total


@contextmanager
def not_kept(
    total: Tensor, inputs: Sequence[Sent], weights: Tensor, activation: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Inside, autograd does not keep ``total``, which is ``activation(gather(inputs, weights))``,
    for the backward pass, but makes it again there.

    So a node keeps one full-size tensor, its output, as it does in a static network.
    """
    again = _Again([sent.x for sent in inputs], weights.detach(), activation)
    where = total.data_ptr(), total.shape  # a reference would keep it

    def pack(tensor: Tensor) -> Tensor | _Again:
        if (tensor.data_ptr(), tensor.shape) != where:
            return tensor
        again.uses += 1
        return again

    def unpack(packed: Tensor | _Again) -> Tensor:
        return packed.make() if isinstance(packed, _Again) else packed

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class _Again:
    """A gathered sum that is made when the first of its users asks for it and let go with the
    last."""

    def __init__(
        self, inputs: list[Tensor], weights: Tensor, activation: Callable[[Tensor], Tensor]
    ) -> None:
        self.inputs, self.weights, self.activation = inputs, weights, activation
        self.uses = self.asked = 0
        self.total: Tensor | None = None

    @torch.no_grad()
    def make(self) -> Tensor:
        if self.total is None:
            self.total = self.activation(_weighted_sum(self.inputs, self.weights))
        total, self.asked = self.total, self.asked + 1
        if self.asked % self.uses == 0:
            self.total = None
        return total


class _Send(torch.autograd.Function):
    """x → (token, average of x). Autograd runs the backward pass of the node after those of all the
    sums that hold its token, so that their gradients are all there to be gathered at once."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, pool: Tensor | None, gradients: dict[Any, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor | None]:
        ctx.gradients = gradients
        ctx.save_for_backward(x, pool)
        return x.new_zeros(()), None if pool is None else _average(x, pool)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, grad_average: Tensor) -> tuple[Tensor | None, ...]:
        x, pool = ctx.saved_tensors
        total = _empty_like(x, x.shape[0])
        if pool is None:
            total.zero_()
        else:
            positions = pool.unflatten(1, x.shape[2:])[:, None]
            torch.mul(grad_average[:, :, None, None], positions, out=total)
        if ctx.gradients:
            gradients, columns = zip(*ctx.gradients.values(), strict=True)
            _write_weighted(total, gradients, torch.stack(columns, dim=1), add=True)
        ctx.gradients.clear()
        return total, None, None


class _Gather(torch.autograd.Function):
    """The sum; backward, the weights' gradients, and the sum's own gradient left with its inputs'
    nodes."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, inputs: Sequence[Sent], *tokens: Tensor | None
    ) -> Tensor:
        tensors = [sent.x for sent in inputs]
        ctx.save_for_backward(weights, *tensors)
        ctx.gradients = [sent.gradients for sent in inputs]
        return _weighted_sum(tensors, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *inputs = ctx.saved_tensors
        needs_weights, _, *needs_inputs = ctx.needs_input_grad
        for i, (gradients, needed) in enumerate(zip(ctx.gradients, needs_inputs, strict=True)):
            if needed:
                gradients[id(ctx)] = (grad, weights[:, i])
        tokens = [grad.new_zeros(()) if needed else None for needed in needs_inputs]
        return _products(inputs, grad).to(weights.dtype) if needs_weights else None, None, *tokens


def _average(x: Tensor, pool: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return torch.bmm(x.flatten(2), pool.to(x.dtype)[:, :, None]).squeeze(2)


def _weighted_sum(inputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    total = _empty_like(inputs[0], inputs[0].shape[0])
    _write_weighted(total, inputs, weights, add=False)
    return total


def _write_weighted(total: Tensor, inputs: Sequence[Tensor], weights: Tensor, *, add: bool) -> None:
    """Write Σ_i weights[b, i] · inputs[i][b] into ``total``, or add it to what is there."""
    # A fake tensor, a subclass, has no data to look at.
    if total.device.type == "cpu" and type(total) is Tensor and not torch.jit.is_tracing():
        flat_total, *flat_inputs = _flatten_alike([total, *inputs])
        for b, row in enumerate(weights.tolist()):
            _write_sum(flat_total[b], [x[b] for x in flat_inputs], row, keep=float(add))
        return
    scales = weights.to(total.dtype)[:, :, None, None, None].unbind(1)
    if not add:
        total.zero_()
    for x, scale in zip(inputs, scales, strict=True):
        total.addcmul_(x.to(total.dtype), scale)


def _write_sum(
    total: Tensor, inputs: Sequence[Tensor], weights: Sequence[float], *, keep: float
) -> None:
    """total ← keep · total + Σ w · x, all of them [M]; what has the factor 0 is not read."""
    terms = [(x.split(_piece(x)), w) for x, w in zip(inputs, weights, strict=True) if w]
    for k, part in enumerate(total.split(_piece(total))):
        written = keep != 0
        if keep not in (0, 1):
            part.mul_(keep)
        for pieces, w in terms:
            if written:
                part.add_(pieces[k], alpha=w)
            else:
                torch.mul(pieces[k], w, out=part)
                written = True
        if not written:
            part.zero_()


def _products(inputs: Sequence[Tensor], grad: Tensor) -> Tensor:
    """⟨inputs[i][b], grad[b]⟩, [B, k], float32 at least: float16 would overflow."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    flat_grad, *flat_inputs = _flatten_alike([grad, *inputs])
    if grad.device.type != "cpu":
        g = flat_grad.to(dtype)
        return torch.stack([torch.linalg.vecdot(x.to(dtype), g) for x in flat_inputs], dim=1)
    totals = torch.zeros(grad.shape[0], len(inputs), dtype=torch.float64)
    for total, g, *xs in zip(totals, flat_grad, *flat_inputs, strict=True):
        pieces = [x.split(_piece(x)) for x in xs]
        for k, part in enumerate(g.split(_piece(g))):
            part = part.to(dtype)
            total += torch.stack([torch.dot(x[k].to(dtype), part) for x in pieces])
    return totals.to(dtype)


def _piece(x: Tensor) -> int:
    return PIECE * torch.get_num_threads() if x.device.type == "cpu" else max(x.numel(), 1)


def _empty_like(x: Tensor, batch: int) -> Tensor:
    """A new tensor [batch, C, H, W] in the memory format of ``x`` [B, C, H, W]."""
    return torch.empty(
        (batch, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=_memory_format(x)
    )


class _Workspace(threading.local):
    """One tensor per thread that grows to the largest size it was asked for."""

    memory = torch.empty(0)

    def empty_like(self, x: Tensor, batch: int) -> Tensor:
        """As :func:`_empty_like`, on a CPU in memory that the former result had."""
        if x.device.type != "cpu":
            return _empty_like(x, batch)
        size = batch * x[0].numel()
        if self.memory.dtype != x.dtype or self.memory.numel() < size:
            self.memory = torch.empty(size, dtype=x.dtype)
        c, h, w = x.shape[1:]
        if _memory_format(x) == torch.channels_last:
            return self.memory[:size].view(batch, h, w, c).permute(0, 3, 1, 2)
        return self.memory[:size].view(batch, c, h, w)


_workspace = _Workspace()


def _memory_format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _flatten_alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [B, C, H, W] as [B, C·H·W] in the memory order and dtype of the first one: views,
    except of those that have another."""
    first = tensors[0]
    memory_format = _memory_format(first)
    alike = [x.to(first.dtype).contiguous(memory_format=memory_format) for x in tensors]
    if memory_format == torch.channels_last:
        alike = [x.permute(0, 2, 3, 1) for x in alike]
    return [x.flatten(1) for x in alike]
