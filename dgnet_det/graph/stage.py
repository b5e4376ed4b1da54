"""A stage of n blocks as a complete directed acyclic graph (Eq. 3), whatever its blocks."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from dgnet_det.graph.aggregation import is_recording, recompute_in_backward
from dgnet_det.graph.decisions import DecisionPoint
from dgnet_det.graph.routing import Adjacency, Router, StaticRouter, apply_threshold


class Block(Protocol):
    """What a family's residual block must offer to be a node. It is also an ``nn.Module``.

    Called with x, it returns a new tensor: with ``has_shortcut``, what the static block makes of x;
    without, its residual branch alone, which ends linear. ``shortcut`` is the projection of the
    shortcut, None where that is the identity or where there is none; a block that has one also
    takes its output as a second argument. ``activation`` is what the family applies after the
    addition: it may work in place.
    """

    in_channels: int
    out_channels: int
    stride: int
    shortcut: nn.Module | None

    def activation(self, x: Tensor) -> Tensor: ...
    def freeze(self) -> nn.Module: ...
    def __call__(self, x: Tensor, projected: Tensor = ...) -> Tensor: ...


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
        """[B, C_in, H, W] → [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉]; ``valid`` is not used."""
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

    Node 0 sends the raw input along 0 → 1, since block 1 carries the stride, and its projection
    P(x) along every other edge; its router reads P(x). A node all of whose inputs are closed for a
    sample is absent for that sample: it sends nothing.

    A wiring is a subclass: it says which edges routers weigh, what stands for α in the sum, and how
    a node runs.

    Module names are part of checkpoints: ``nodes.{1..n}``, ``routers.{i}``, ``thresholds`` (one τ
    per router), ``gammas.{i}`` (residual wiring) and ``projection`` (where node 1 has no shortcut
    projection to share).
    """

    nearest: int  # the router of node i weighs its edges to nodes i + nearest, …, n + 1
    has_shortcuts: bool  # whether the blocks keep their own shortcuts
    normalised: bool  # whether routers read a normalised average

    def __init__(self, blocks: Sequence[Block], *, edge_weights: str, norm: str | Callable) -> None:
        """
        Args:
            blocks: the stage's blocks in order, with shortcuts or without as the wiring has them.
            edge_weights: ``dynamic`` or ``static``.
            norm: of the projection, as for :func:`detectron2.layers.get_norm`.
        """
        super().__init__(blocks)
        self.num_nodes = n = len(blocks) + 2
        self.activation = blocks[-1].activation
        self.projection = _projection(blocks[0], norm)
        router = {"dynamic": Router, "static": StaticRouter}[edge_weights]
        self.routers = nn.ModuleDict(
            {
                str(i): router(self.out_channels, n - self.nearest - i, normalised=self.normalised)
                for i in range(n - self.nearest)
            }
        )
        self.thresholds = nn.Parameter(torch.zeros(len(self.routers)))
        # The edges that routers weigh: row j holds those into node j.
        self.edges = torch.ones(n, n, dtype=torch.bool, device="cpu").tril(-self.nearest)
        self.decisions = DecisionPoint()
        # Makes the matrix M after :func:`.prepared.prepare`.
        self.prepared: Callable[..., Adjacency | None] | None = None

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """
        Args:
            x: the stage's input, [B, C_in, H, W].
            valid: [B, 2], height and width of the part of the stage's *output* that is no padding;
                None for all of it.

        Returns:
            The stage's output, [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉].
        """
        nodes = [self.project(x)]
        m = self.adjacency(nodes[0], valid)
        for j in range(1, self.num_nodes):
            m.write(*self.weigh(j - 1, nodes[-1], m))  # Eqs. 4 and 5: column j - 1
            nodes.append(self.run(j, [x] if j == 1 else nodes, m, nodes[0]))  # Eq. 3: row j
        self.decisions(partial(m.decisions, self.thresholds, self.edges))
        return nodes[-1]

    def adjacency(self, projected: Tensor, valid: Tensor | None) -> Adjacency:
        """An empty matrix M for one forward pass."""
        if self.prepared and (m := self.prepared(self, projected, valid)):
            return m
        can_close = is_recording(projected) or self.can_close()
        return Adjacency(self.num_nodes, projected, valid, can_close=can_close)

    def can_close(self) -> bool:
        """Whether a τ is above 0. α never is below."""
        return bool((self.thresholds > 0).any())

    def is_frozen(self) -> bool:
        """Whether nothing in the graph learns."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def freeze(self) -> None:
        """As :meth:`PlainStage.freeze`: routers and projection freeze with the blocks."""
        super().freeze()
        if self.projection is not None:
            self.projection = FrozenBatchNorm2d.convert_frozen_batchnorm(self.projection)

    def project(self, x: Tensor) -> Tensor:
        """P(x), what node 0 sends along every edge but 0 → 1.

        It pools before it convolves: a 1×1 convolution of stride 2 sees one position of four. That
        adds no parameter, and no multiply-add that Table 1 counts.
        """
        if self.stride != 1:
            x = F.max_pool2d(x, kernel_size=3, stride=self.stride, padding=1)
        return x if self.projection is None else self.projection(x)

    def weigh(self, i: int, x_i: Tensor, m: Adjacency) -> tuple[Tensor, Tensor]:
        """Column i of M: α by Eq. 4 and, after Eq. 5, the factors in the sums, [B, K] each."""
        if str(i) not in self.routers:
            nothing = m.positions[:, :0, 0]
            return nothing, self.factor(i, nothing)
        alpha = opened = self.routers[str(i)](m.average(x_i))
        if m.can_close or torch.is_grad_enabled():
            opened, _ = apply_threshold(alpha, self.thresholds[i])
        return alpha, self.factor(i, opened)

    # What a wiring says.

    def factor(self, i: int, opened: Tensor) -> Tensor:
        """The factors in the sums of node i's edges to the last K nodes, [B, K], from α after
        Eq. 5."""
        return opened

    @abstractmethod
    def run(self, j: int, nodes: Sequence[Tensor], m: Adjacency, projected: Tensor) -> Tensor:
        """x_j of Eq. 3, from the outputs of the nodes before it (for j = 1, the raw input)."""


def f_of_sum(
    f: Callable[[Tensor], Tensor],
    activation: Callable[[Tensor], Tensor],
    j: int,
    nodes: Sequence[Tensor],
    m: Adjacency,
) -> Tensor:
    """f(activation(Σ_i M[b, j, i] · nodes[i][b])). The backward pass makes the sum anew."""
    total = m.gather(j, nodes)
    if is_recording(total) or not total.requires_grad:
        return f(activation(total))
    with recompute_in_backward(total, nodes, m.row(j), activation):
        return f(activation(total))


def _projection(block: Block, norm: str | Callable) -> Conv2d | None:
    """The 1×1 convolution of P, without stride, and its norm; None where the stage's first block
    keeps the shape, or has a projection of its own to share."""
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
