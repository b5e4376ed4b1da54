"""The two wirings: which edges routers weigh, what stands for α in the sum, and what f_j is."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_det.graph.aggregation import is_recording
from dgnet_det.graph.routing import Adjacency
from dgnet_det.graph.stage import Block, DynamicGraph, f_of_sum


class PaperGraph(DynamicGraph):
    """The paper's wiring: routers weigh all (n + 2)(n + 1)/2 edges, x_j = f_j(Σ α_ij x_i).

    The blocks have no shortcuts and end linear, and the family's after-addition activation acts on
    the gathered sum, so that with α ≡ 1 the graph unrolls to a residual network.

    A node runs only for the samples that have an open edge into it, in training as at inference, so
    that its batch statistics are those of the samples that its running statistics will serve. In
    training, unless the graph is frozen, a node that no sample feeds runs for the one sample whose
    edge into it is the strongest (for two where feature maps are 1×1, since batch norm needs two
    values): so every edge can open again, and every parameter has a gradient in every iteration,
    as data parallelism demands. If all edges into the output are closed for a sample, the strongest
    stays open.
    """

    nearest = 1
    has_shortcuts = False
    normalised = False

    def weigh(self, i: int, x_i: Tensor, m: Adjacency) -> tuple[Tensor, Tensor]:
        """As :meth:`DynamicGraph.weigh`. An absent node sends nothing."""
        if i in m.absent:
            nothing = m.positions.new_zeros(len(x_i), self.num_nodes - 1 - i)
            return nothing, nothing
        alpha, weight = super().weigh(i, x_i, m)
        if i == 0 or not m.can_close:
            return alpha, weight
        is_fed = m.row(i).ne(0).any(dim=1, keepdim=True)
        return alpha * is_fed, weight * is_fed

    def run(self, j: int, nodes: Sequence[Tensor], m: Adjacency, projected: Tensor) -> Tensor:
        """x_j = f_j(Σ α_ij x_i)."""
        if j == self.num_nodes - 1:
            if m.can_close:
                is_closed = m.row(j).eq(0).all(dim=1, keepdim=True)
                m.reopened[j] = m.row(j) + is_closed * m.strongest(j)
            return self.activation(m.gather(j, nodes))
        block = self.node(j)
        # A recorded program must not depend on the image: it computes absent nodes, and does not
        # send them. In training that would give batch norm other statistics.
        if m.can_close and (self.training or not is_recording(projected)):
            if self.training and not self.is_frozen():
                self._feed(j, m, 1 if projected[0, 0].numel() > 1 else 2)
            is_fed = m.row(j).ne(0).any(dim=1)
            if not is_fed.any():
                m.absent.add(j)
                return torch.zeros_like(projected[:1, :1, :1, :1]).expand_as(projected)
            if not is_fed.all():
                x_j = block(block.activation(m.gather(j, nodes)[is_fed]))
                return x_j.new_zeros(len(is_fed), *x_j.shape[1:]).index_put((is_fed,), x_j)
        return f_of_sum(block, block.activation, j, nodes, m)

    def _feed(self, j: int, m: Adjacency, samples: int) -> None:
        """Open the strongest edge into node j where fewer than ``samples`` samples feed it."""
        row = m.row(j)
        is_fed, samples = row.ne(0).any(dim=1), min(samples, len(row))
        if is_fed.sum() < samples:
            strongest = m.strongest(j, samples=samples)
            m.reopened[j] = torch.where(is_fed[:, None], row, strongest)


class ResidualGraph(DynamicGraph):
    """The wiring for static checkpoints: x_j = f_j(x_{j-1} + Σ γ_ij α_ij x_i), where f_j is the
    static block, shortcut included.

    γ is learnable and starts at 0, so that the graph starts equal to the static stage, and every γ
    has a gradient. The chain j-1 → j keeps every node present.

    Routers read a normalised average: the averages of a trained network differ little between
    images beside their size, and in a fine-tuning the routers' gradient has the factor γ.
    """

    nearest = 2
    has_shortcuts = True
    normalised = True

    def __init__(self, blocks: Sequence[Block], **arguments: Any) -> None:
        """As :class:`DynamicGraph`."""
        super().__init__(blocks, **arguments)
        self.gammas = nn.ParameterDict(
            {i: torch.zeros(self.num_nodes - 2 - int(i)) for i in self.routers}
        )

    def project(self, x: Tensor) -> Tensor:
        """P(x): block 1's own shortcut projection, where there is one."""
        shortcut = self.node(1).shortcut
        return super().project(x) if shortcut is None else shortcut(x)

    def factor(self, i: int, opened: Tensor) -> Tensor:
        """1 for the chain i → i + 1, then γ·α."""
        weight = self.gammas[str(i)] * opened if str(i) in self.gammas else opened
        return F.pad(weight, (1, 0), value=1.0)

    def run(self, j: int, nodes: Sequence[Tensor], m: Adjacency, projected: Tensor) -> Tensor:
        """x_j = f_j(x_{j-1} + Σ γ_ij α_ij x_i); for block 1 the sum is the stage's input."""
        if j == 1:
            block = self.node(1)
            return block(nodes[0]) if block.shortcut is None else block(nodes[0], projected)
        if j == self.num_nodes - 1:
            return m.gather(j, nodes)
        return f_of_sum(self.node(j), _identity, j, nodes, m)


def _identity(x: Tensor) -> Tensor:
    return x
