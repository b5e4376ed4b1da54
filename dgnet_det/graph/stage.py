"""A stage of n blocks as a complete directed acyclic graph (Eq. 3), whatever its blocks."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from dgnet_det.graph.aggregation import Workspace, has_no_values, remade_in_backward, weighted_sum
from dgnet_det.graph.routing import (
    Adjacency,
    EdgeWeights,
    Router,
    StaticRouter,
    ValidAverage,
    apply_threshold,
    spread,
)

_workspace = Workspace()


class Block(Protocol):
    """What a family's residual block must offer to be a node. It is also an ``nn.Module``.

    ``forward(x)`` is the static block, shortcut and activation included. ``branch(x)`` is its
    residual branch alone, which ends without an activation. Both return a new tensor. ``shortcut``
    is the projection of its shortcut, None where that is the identity or where there is none.
    ``activation`` is what the family applies after the addition: it may work in place.
    """

    in_channels: int
    out_channels: int
    stride: int
    shortcut: nn.Module | None

    def branch(self, x: Tensor) -> Tensor: ...
    def activation(self, x: Tensor) -> Tensor: ...
    def freeze(self) -> nn.Module: ...
    def __call__(self, x: Tensor) -> Tensor: ...


# A network's stem and, for each of res2..res5, the blocks of each of its stages.
Network = tuple[CNNBlockBase, list[list[list[Block]]]]


class PlainStage(nn.Module):
    """The stage of the static network: one block after the other, named ``nodes.1`` …
    ``nodes.n``."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.in_channels, self.stride = blocks[0].in_channels, blocks[0].stride
        self.out_channels = blocks[-1].out_channels
        numbered = enumerate(cast(Sequence[nn.Module], blocks), start=1)
        self.nodes = nn.ModuleDict({str(j): block for j, block in numbered})

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉]; ``valid`` is not looked at."""
        for node in self.nodes.values():
            x = node(x)
        return x

    def node(self, j: int) -> Block:
        """The block of node j, 1 ≤ j ≤ n."""
        return cast(Block, self.nodes[str(j)])

    def freeze(self) -> None:
        """Freeze the stage whole, norms included, as :meth:`CNNBlockBase.freeze` does a block."""
        for node in self.nodes.values():
            cast(Block, node).freeze()
        self.requires_grad_(False)


class DynamicGraph(PlainStage):
    """One stage of n blocks as a DAG of N = n + 2 nodes: 0 the input, 1..n the blocks, n + 1 the
    output.

        x_j = f_j(Σ_{i<j} α[b, i, j] · x_i)    (Eq. 3)

    The wirings, :class:`.wirings.PaperGraph` and :class:`.wirings.ResidualGraph`, say which edges
    routers weigh, what f_j is, and what stands for α in the sum.

    Node 0 sends the raw input along 0 → 1, since block 1 carries the stride, and its projection
    P(x) along every other edge; its router reads P(x). A node all of whose inputs are closed for a
    sample is absent for that sample: it is not run, and it sends nothing.

    Module names are part of checkpoints: ``nodes.{1..n}``, ``routers.{i}``, ``thresholds`` (one τ
    per router, in their order), ``gammas.{i}`` (residual wiring), ``projection`` (where node 1 has
    no shortcut projection to share).
    """

    fixed_chain: bool  # whether the edges j-1 → j are fixed at 1
    router_start: float  # α where the routers start
    normalised_routers: bool  # whether routers normalise the average that they read

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        edge_weights: str,
        norm: str | Callable,
    ) -> None:
        """
        Args:
            blocks: the stage's blocks in order; in the paper wiring without shortcuts.
            edge_weights: ``dynamic`` or ``static``.
            norm: of the projection, as for :func:`detectron2.layers.get_norm`.
        """
        super().__init__(blocks)
        self.num_nodes = n = len(blocks) + 2
        self.activation = blocks[-1].activation
        step = 2 if self.fixed_chain else 1
        # The edges that routers weigh: row j for those into node j.
        self.edges = torch.ones(n, n, dtype=torch.bool).tril(-step)
        # For every node that has a router, the later nodes whose edges it weighs.
        self.targets = {i: tuple(range(i + step, n)) for i in range(n - step)}

        self.projection = _projection(blocks[0], norm) if 0 in self.targets else None
        router = {"dynamic": Router, "static": StaticRouter}[edge_weights]
        self.routers = nn.ModuleDict(
            {
                str(i): router(
                    self.out_channels,
                    len(nodes),
                    start=self.router_start,
                    normalised=self.normalised_routers,
                )
                for i, nodes in self.targets.items()
            }
        )
        self.thresholds = nn.Parameter(torch.zeros(len(self.targets)))
        # Called with the :class:`EdgeWeights` of every forward pass.
        self.observers: list[Callable[[EdgeWeights], None]] = []

    def threshold(self, i: int) -> Tensor:
        """τ of node i, a scalar tensor. The node must have a router."""
        return self.thresholds[list(self.targets).index(i)]

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """
        Args:
            x: the stage's input, [B, C_in, H, W].
            valid: [B, 2], height and width of the part of the stage's *output* that is no padding;
                None for all of it.

        Returns:
            The stage's output, [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉].
        """
        m = Adjacency(can_close=has_no_values(x) or bool((self.thresholds > 0).any()))
        projected = self._project(x)
        average = ValidAverage(projected, valid)
        # Without an edge but 0 → 1, node 0 may have nothing that gives P the shape of the others.
        nodes: list[Tensor | None] = [projected if 0 in self.targets else None]
        present: Tensor | None = None
        for j in range(1, self.num_nodes):
            m.write(*self._column(j - 1, nodes[-1], present, average))
            x_j, present = self._run(j, m, [x] if j == 1 else nodes, projected)
            nodes.append(x_j)
        for observe in self.observers:
            observe(m.edge_weights(self.edges, fixed_chain=self.fixed_chain))
        return cast(Tensor, nodes[-1])

    def freeze(self) -> None:
        """As :meth:`PlainStage.freeze`: routers and projection freeze with the blocks."""
        super().freeze()
        if self.projection is not None:
            self.projection = FrozenBatchNorm2d.convert_frozen_batchnorm(self.projection)

    def _project(self, x: Tensor) -> Tensor:
        """P(x), what node 0 sends along every edge but 0 → 1.

        It pools before it convolves: a 1×1 convolution of stride 2 sees one position of four. That
        adds no parameter, and no multiply-add that Table 1 counts.
        """
        if self.stride != 1:
            x = F.max_pool2d(x, kernel_size=3, stride=self.stride, padding=1)
        return x if self.projection is None else self.projection(x)

    def _column(
        self, i: int, x_i: Tensor | None, present: Tensor | None, average: ValidAverage
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Column i of M: α by Eq. 4, the gate of Eq. 5, and the factor in the sum, [B, N] each.

        ``x_i`` is None where the node is absent in every sample; ``present`` [B] tells in which
        samples it is there, None for all.
        """
        if x_i is None or i not in self.targets:
            nothing = average.weights.new_zeros(average.weights.shape[0], self.num_nodes)
            return nothing, nothing, self._weight(i, nothing)
        alpha = self.routers[str(i)](average(x_i))
        opened, gate = apply_threshold(alpha, self.threshold(i))
        if present is not None:
            alpha, opened, gate = (x * present[:, None] for x in (alpha, opened, gate))
        alpha, opened, gate = (
            spread(x, self.targets[i], self.num_nodes) for x in (alpha, opened, gate)
        )
        return alpha, gate, self._weight(i, opened)

    def _f(
        self,
        block: Callable[[Tensor], Tensor],
        activation: Callable[[Tensor], Tensor],
        nodes: Sequence[Tensor | None],
        row: Tensor,
        present: Tensor | None = None,
    ) -> Tensor:
        """x_j = block(activation(Σ_i row[b, i] · nodes[i][b])), 0 for samples that are not
        ``present``."""
        inputs, row = _there(nodes, row)
        out = None if torch.is_grad_enabled() else _workspace.like(inputs[0])
        total = weighted_sum(inputs, row, out=out)
        if present is not None:
            x_j = block(activation(total[present]))
            return x_j.new_zeros(len(present), *x_j.shape[1:]).index_put((present,), x_j)
        if has_no_values(total) or not total.requires_grad:
            return block(activation(total))
        inputs, row = [x.detach() for x in inputs], row.detach()
        with remade_in_backward(total, lambda: activation(weighted_sum(inputs, row))):
            return block(activation(total))

    def _output(self, nodes: Sequence[Tensor | None], row: Tensor) -> Tensor:
        """The sum of the output node. At inference it takes the place of the last block's output,
        which nothing else reads."""
        inputs, row = _there(nodes, row)
        in_place = nodes[-1] is not None and not torch.is_grad_enabled()
        return weighted_sum(inputs, row, out=inputs[-1] if in_place else None)

    # What a wiring says.

    @abstractmethod
    def _weight(self, i: int, opened: Tensor) -> Tensor:
        """Column i of the factors in the sum, from that of α after Eq. 5, [B, N] each."""

    @abstractmethod
    def _run(
        self, j: int, m: Adjacency, nodes: Sequence[Tensor | None], projected: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Node j of Eq. 3, from the outputs of the nodes before it (for j = 1, the raw input).

        Returns:
            x_j, 0 for the samples in which the node is absent, None if it is absent in all; and in
            which samples it is present, bool, [B], None for all.
        """


def _projection(block: Block, norm: str | Callable) -> Conv2d | None:
    """What P convolves with, given the stage's first block: a 1×1 convolution without stride, and a
    norm; None where the block keeps the shape, or has a projection of its own to share."""
    keeps_shape = block.stride == 1 and block.in_channels == block.out_channels
    if keeps_shape or block.shortcut is not None:
        return None
    projection = Conv2d(
        block.in_channels,
        block.out_channels,
        kernel_size=1,
        bias=False,
        norm=get_norm(norm, block.out_channels),
    )
    weight_init.c2_msra_fill(projection)
    return projection


def _there(nodes: Sequence[Tensor | None], row: Tensor) -> tuple[list[Tensor], Tensor]:
    """The nodes that are not absent in every sample, and their weights."""
    there = [i for i, x in enumerate(nodes) if x is not None]
    inputs = [cast(Tensor, nodes[i]) for i in there]
    return inputs, row if len(there) == len(nodes) else row[:, there]
