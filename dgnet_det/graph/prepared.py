"""Inference with memory that is kept from one image to the next, for a model that
``optimize_for_inference`` prepared. What forward hooks get to see in it is overwritten later, but
never a stage's output."""

import threading
from collections.abc import Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dgnet_det.graph.aggregation import is_recording, memory_format, weighted_sum
from dgnet_det.graph.decisions import Decisions
from dgnet_det.graph.routing import Adjacency
from dgnet_det.graph.stage import DynamicGraph

# On a CPU, feature maps of up to so many elements per image lie in one buffer, and a sum is one
# matrix product. Of larger ones, a sum in pieces reads memory faster: docs/performance.md.
LARGEST = 2**20


def prepare(graph: DynamicGraph) -> None:
    """Let a graph keep its memory in forward passes without gradients. Its thresholds are read
    once, here."""
    graph.prepared = partial(_adjacency, can_close=graph.can_close())


def _adjacency(
    graph: DynamicGraph, projected: Tensor, valid: Tensor | None, *, can_close: bool
) -> Adjacency | None:
    """A matrix M in kept memory; None where the pass needs gradients, is recorded, or has mixed
    precision. The arguments are those of :class:`Adjacency`."""
    mixed = torch.is_autocast_enabled(projected.device.type)
    if torch.is_grad_enabled() or mixed or is_recording(projected):
        return None
    if projected.dtype not in (torch.float32, torch.float64) or not len(projected):
        return None
    with torch.inference_mode(False):  # a later pass outside of it may use this memory
        memory = _memory_of(graph, projected)
    return PreparedAdjacency(memory, graph.num_nodes, projected, valid, can_close)


class Memory:
    """The memory of one graph for feature maps of one shape, and all views that a pass takes of
    it. Where sums are matrix products, it has a buffer for the outputs of all nodes."""

    def __init__(self, graph: DynamicGraph, like: Tensor) -> None:
        """``like`` [B, C, H, W] has the shape of the nodes' outputs."""
        batch, channels, height, width = like.shape
        n = graph.num_nodes
        self.key = _key(like)
        self.is_last = memory_format(like) == torch.channels_last
        self.size = (height, width, channels) if self.is_last else (channels, height, width)
        self.is_small = like.device.type != "cpu" or like[0].numel() <= LARGEST
        flat = like.new_empty(batch, n, like[0].numel()) if self.is_small else _shared(like)
        self.slots = [self.as_map(x) for x in flat.unbind(1)]  # the last for the sum
        self.pooled = like.new_empty(batch, channels, 1)
        self.averages = self.pooled.squeeze(2)
        self.matrix = like.new_zeros(batch, n, n)
        self.columns = [self.matrix[:, i + 1 :, i] for i in range(n)]
        self.rows = [self.matrix[:, j, :j] for j in range(n)]
        self.factors = [self.matrix[:, j : j + 1, :j] for j in range(n)]
        self.inputs = [flat[:, :j] for j in range(n)]
        self.total = flat[:, -1:]

    def as_map(self, flat: Tensor) -> Tensor:
        """[B, …] with C·H·W elements per image as [B, C, H, W]."""
        x = flat.view(len(flat), *self.size)
        return x.permute(0, 3, 1, 2) if self.is_last else x


_of_thread = threading.local()


def _key(like: Tensor) -> tuple:
    return like.shape, like.dtype, like.device, memory_format(like)


def _shared(like: Tensor) -> Tensor:
    """Memory for one sum, [B, 1, C·H·W], that the graphs of a thread share."""
    shared = _of_thread.__dict__.get("shared")
    if shared is None or shared.dtype != like.dtype or shared.numel() < like.numel():
        shared = _of_thread.shared = like.new_empty(like.numel())
    return shared[: like.numel()].view(len(like), 1, -1)


def _memory_of(graph: DynamicGraph, like: Tensor) -> Memory:
    """The memory of ``graph`` in this thread; another shape takes the place of the last one."""
    memories = _of_thread.__dict__.setdefault("memories", WeakKeyDictionary())
    memory = memories.get(graph)
    if memory is None or memory.key != _key(like):
        memory = memories[graph] = Memory(graph, like)
    return memory


class PreparedAdjacency(Adjacency):
    """The matrix M in kept memory, and the sums in it."""

    def __init__(
        self,
        memory: Memory,
        num_nodes: int,
        projected: Tensor,
        valid: Tensor | None,
        can_close: bool,
    ) -> None:
        super().__init__(num_nodes, projected, valid, can_close=can_close)
        self.memory = memory
        self.kept = 0  # number of nodes whose outputs are in the buffer

    def average(self, x: Tensor) -> Tensor:
        """As :meth:`Adjacency.average`."""
        torch.bmm(x.flatten(2), self.positions, out=self.memory.pooled)
        return self.memory.averages

    def write(self, alpha: Tensor, weight: Tensor) -> None:
        """As :meth:`Adjacency.write`."""
        self.memory.columns[len(self.alphas)].copy_(weight)
        self.alphas.append(alpha)

    def row(self, j: int) -> Tensor:
        """As :meth:`Adjacency.row`."""
        return self.reopened.get(j, self.memory.rows[j])

    def gather(self, j: int, nodes: Sequence[Tensor]) -> Tensor:
        """As :meth:`Adjacency.gather`; the output node's sum is in memory of its own."""
        memory, is_output = self.memory, j == self.num_nodes - 1
        if j == 1:  # the raw input, of another shape
            return nodes[0] * self.row(1)[:, :, None, None]
        if not memory.is_small:
            out = memory.slots[-1]
            if is_output:  # takes the place of the last block's output, which nothing else reads
                out = nodes[-1] if nodes[-1].stride() == out.stride() else torch.empty_like(out)
            return weighted_sum(nodes, self.row(j), out=out)
        for i in range(self.kept, j):
            memory.slots[i].copy_(nodes[i])
        self.kept = j
        factors = self.reopened[j][:, None] if j in self.reopened else memory.factors[j]
        if is_output:
            return memory.as_map(torch.bmm(factors, memory.inputs[j]))
        torch.bmm(factors, memory.inputs[j], out=memory.total)
        return memory.slots[-1]

    def decisions(self, thresholds: Tensor, learned: Tensor) -> Decisions:
        """As :meth:`Adjacency.decisions`."""
        self.columns = self.memory.matrix[:, :, :-1].clone()
        return super().decisions(thresholds, learned)
