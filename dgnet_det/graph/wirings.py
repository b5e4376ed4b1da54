"""The two wirings: what stands for α in the sum, what f_j is, and which nodes can be absent."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dgnet_det.graph.aggregation import has_no_values
from dgnet_det.graph.routing import Adjacency, spread
from dgnet_det.graph.stage import Block, DynamicGraph


class PaperGraph(DynamicGraph):
    """The paper's wiring: routers weigh all (n + 2)(n + 1)/2 edges, x_j = f_j(Σ α_ij x_i).

    The blocks have no shortcuts of their own and end linear, and the family's after-addition
    activation acts on the gathered sum, so that with α ≡ 1 the graph unrolls to a residual network.
    That is about where it starts.

    A node is run for the samples that feed it alone, in training as at inference, so that its batch
    statistics are those of the samples that its running statistics will serve. In training, unless
    the graph is frozen, a node that no sample feeds is run for the one sample whose edge into it is
    the strongest: so every edge can open again, and every parameter takes part in every iteration,
    as data parallelism demands. Where feature maps are 1×1, it is run for two samples at least. If
    all edges into the output are closed for a sample, the strongest stays open.
    """

    fixed_chain = False
    router_start = 0.98
    normalised_routers = False

    def _weight(self, i: int, opened: Tensor) -> Tensor:
        return opened

    def _run(
        self, j: int, m: Adjacency, nodes: Sequence[Tensor | None], projected: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        row = m.row(j)
        if j == self.num_nodes - 1:
            closed = row.eq(0).all(dim=1, keepdim=True)
            row = m.reopen(j, row + closed * m.strongest(j))
            return self.activation(self._output(nodes, row)), None
        block = self.node(j)
        if not m.can_close:
            return self._f(block.branch, block.activation, nodes, row), None
        present = row.ne(0).any(dim=1)
        if has_no_values(projected):
            # The program must not depend on the image: absent nodes are computed, and not sent.
            return self._f(block.branch, block.activation, nodes, row), present
        if present.all():
            return self._f(block.branch, block.activation, nodes, row), None
        if self.training and self.thresholds.requires_grad:
            # Batch norm asks for two values per channel.
            needed = min(1 if projected[0, 0].numel() > 1 else 2, len(row))
            if present.sum() < needed:
                reopened = m.strongest(j, samples=needed)
                row = m.reopen(j, torch.where(present[:, None], row, reopened))
                present = row.ne(0).any(dim=1)
        elif not present.any():
            return None, present
        return self._f(block.branch, block.activation, nodes, row, present), present


class ResidualGraph(DynamicGraph):
    """The wiring for static checkpoints: the blocks are the static ones, shortcuts included, the
    chain j-1 → j is fixed at 1, and every further edge carries γ·α.

    γ is learnable and starts at 0, so that the graph starts equal to the static stage, and every γ
    has a gradient. The chain keeps every node present.

    The routers' gradient has the factor γ, so in a fine-tuning they move little: what varies with
    the image is what varies at the start. So they start where the sigmoid is steepest, and read a
    normalised average: the averages of a trained network differ little between images beside their
    size.
    """

    fixed_chain = True
    router_start = 0.5
    normalised_routers = True

    def __init__(self, blocks: Sequence[Block], **arguments: Any) -> None:
        """As :class:`DynamicGraph`."""
        super().__init__(blocks, **arguments)
        self.gammas = nn.ParameterDict(
            {str(i): torch.zeros(len(nodes)) for i, nodes in self.targets.items()}
        )

    def _project(self, x: Tensor) -> Tensor:
        """P(x): block 1's own shortcut projection, where there is one."""
        shortcut = self.node(1).shortcut
        return super()._project(x) if shortcut is None else shortcut(x)

    def _weight(self, i: int, opened: Tensor) -> Tensor:
        chain = opened.new_zeros(self.num_nodes)
        chain[i + 1] = 1
        if i not in self.targets:
            return opened + chain
        gamma = spread(self.gammas[str(i)][None], self.targets[i], self.num_nodes)
        return gamma * opened + chain

    def _run(
        self, j: int, m: Adjacency, nodes: Sequence[Tensor | None], projected: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        before = cast(Tensor, nodes[-1])
        if j == 1:
            block = self.node(1)
            if block.shortcut is None:
                return block(before), None
            return block.activation(block.branch(before).add_(projected)), None
        row = m.row(j)
        # On a GPU, to look would cost more than to add zeros.
        looks = row.device.type == "cpu" and not (torch.is_grad_enabled() or has_no_values(before))
        chain_alone = looks and not row[:, :-1].any()
        if j == self.num_nodes - 1:
            return before if chain_alone else self._output(nodes, row), None
        if chain_alone:
            return self.node(j)(before), None
        return self._f(self.node(j), nn.Identity(), nodes, row), None
