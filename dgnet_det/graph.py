"""A stage as a complete directed acyclic graph (Eq. 3), whatever the family of its blocks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from .aggregation import gather, gather_open
from .routing import AdjacencyBuffer, Router, StaticRouter, averaging_weights, threshold_gate

WIRINGS = ("paper", "residual")
EDGE_WEIGHTS = ("dynamic", "static", "none")


class Block(Protocol):
    """What a family's residual block must offer to be a node. It is also an ``nn.Module``.

    ``forward(x)`` is the static block, shortcut and activation included. ``branch(x)`` is its
    residual branch alone, which ends without an activation. ``shortcut`` is the projection of its
    shortcut, None where that is the identity or where there is none. ``activation`` is what the
    family applies after the addition: it may work in place.
    """

    in_channels: int
    out_channels: int
    stride: int
    shortcut: nn.Module | None

    def branch(self, x: Tensor) -> Tensor: ...
    def activation(self, x: Tensor) -> Tensor: ...
    def freeze(self) -> nn.Module: ...
    def __call__(self, x: Tensor) -> Tensor: ...


class Wiring(NamedTuple):
    """What one forward pass of one stage decided, [B, N, N] each: row j holds the edges into node
    j."""

    # After Eq. 5: 0 where an edge is closed or absent; 1 on the fixed chain of the residual wiring.
    alpha: Tensor
    # The factor in the gathered sum: α, and γ·α in the residual wiring.
    weight: Tensor


class DynamicGraph(nn.Module):
    """One stage of n blocks as a DAG of N = n + 2 nodes: 0 the input, 1..n the blocks, n + 1 the
    output.

        x_j = f_j(Σ_{i<j} α[b, i, j] · x_i)    (Eq. 3)

    ``paper`` wiring: all (n + 2)(n + 1)/2 edges are weighted, the blocks have no shortcuts of their
    own and end linear, and the family's after-addition activation acts on the gathered sum, so that
    with α ≡ 1 the graph unrolls to a residual network. ``residual`` wiring: the blocks are the
    static ones, the chain j-1 → j is fixed at 1, and every further edge carries γ·α with a
    learnable γ that starts at 0, so that the graph starts equal to the static stage. With edge
    weights ``none`` there is the chain alone: the plain stage.

    Node 0 sends the raw input along 0 → 1, since block 1 carries the stride, and its projection
    P(x) along every other edge; its router reads P(x). A node all of whose inputs are closed for a
    sample is absent for that sample: it sends nothing. If that befalls the output node, its
    strongest edge stays open.

    Module names are part of checkpoints: ``nodes.{1..n}``, ``routers.{i}``, ``thresholds`` (one τ
    per router), ``gammas.{i}`` (residual wiring), ``projection`` (where node 1 has no shortcut
    projection to share).

    After each eager forward pass ``self.observer`` is called with a :class:`Wiring`: register a
    forward hook on it.
    """

    def __init__(
        self, blocks: Sequence[Block], *, wiring: str, edge_weights: str, norm: str | Callable
    ) -> None:
        """
        Args:
            blocks: the stage's blocks in order. With edge weights, in the paper wiring, without
                shortcuts.
            wiring: ``paper`` or ``residual``.
            edge_weights: ``dynamic``, ``static`` or ``none``.
            norm: of the projection, as for :func:`detectron2.layers.get_norm`.
        """
        super().__init__()
        self.residual = wiring == "residual"
        self.in_channels, self.stride = blocks[0].in_channels, blocks[0].stride
        self.out_channels = blocks[-1].out_channels
        self.num_nodes = len(blocks) + 2
        modules = cast(Sequence[nn.Module], blocks)
        self.nodes = nn.ModuleDict({str(j): block for j, block in enumerate(modules, start=1)})
        self.plain = edge_weights == "none"
        if self.plain:
            return

        self.projection: nn.Module | None = None
        changes_shape = self.stride != 1 or self.in_channels != self.out_channels
        if changes_shape and not (self.residual and blocks[0].shortcut is not None):
            self.projection = Conv2d(
                self.in_channels,
                self.out_channels,
                kernel_size=1,
                stride=self.stride,
                bias=False,
                norm=get_norm(norm, self.out_channels),
            )
            weight_init.c2_msra_fill(self.projection)

        router = {"dynamic": Router, "static": StaticRouter}[edge_weights]
        # On the fixed chain of the residual wiring there is nothing to route.
        first_target = 2 if self.residual else 1
        edges = {i: self.num_nodes - i - first_target for i in range(self.num_nodes - first_target)}
        self.routers = nn.ModuleDict(
            {str(i): router(self.out_channels, k) for i, k in edges.items()}
        )
        self.thresholds = nn.Parameter(torch.zeros(len(edges)))
        if self.residual:
            self.gammas = nn.ParameterDict({str(i): torch.zeros(k) for i, k in edges.items()})
        self.observer = nn.Identity()

    def node(self, j: int) -> Block:
        """The block of node j, 1 ≤ j ≤ n."""
        return cast(Block, self.nodes[str(j)])

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """
        Args:
            x: the stage's input, [B, C_in, H, W].
            valid: [B, 2], height and width of the part of the stage's *output* that is no padding;
                None for all of it.

        Returns:
            The stage's output, [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉].
        """
        if self.plain:
            for node in self.nodes.values():
                x = node(x)
            return x

        # Closed edges and absent nodes are left out where that can be decided on the spot. Training
        # keeps every tensor, since closed edges have gradients too, and a trace must not depend on
        # the traced image.
        skip = not (torch.is_grad_enabled() or self.training or torch.jit.is_tracing())
        projected = self._project(x)
        height, width = projected.shape[2:]
        if valid is None:
            valid = torch.tensor([[height, width]], device=x.device).expand(x.shape[0], 2)
        pool = averaging_weights(height, width, valid, dtype=self.thresholds.dtype)

        edges = _Edges(self, pool)
        outputs: list[Tensor | None] = [projected]
        edges.write(0, projected, present=None)
        for j in range(1, self.num_nodes - 1):
            row = edges.weight.read(j)
            inputs = [x] if j == 1 else outputs
            if skip:
                x_j, present = self._run_where_present(j, inputs, row, projected)
            else:
                x_j = self._f(j, self._sum(inputs, row), projected)
                present = None if self.residual else row.ne(0).any(dim=1)
            outputs.append(x_j)
            edges.write(j, x_j, present)
        row = edges.output_row()
        output = self._sum_open(outputs, row.tolist()) if skip else self._sum(outputs, row)
        if not self.residual:
            output = self.node(self.num_nodes - 2).activation(output)
        if not torch.jit.is_tracing():
            self.observer(edges.wiring(row))
        return output

    def freeze(self, *, routers: bool) -> None:
        """Freeze the nodes, as :meth:`CNNBlockBase.freeze`, and, if ``routers``, everything else as
        well.

        The paper wiring's projections freeze with the nodes: they were pretrained with them. A
        projection that a static checkpoint cannot hold (residual wiring) goes with the routers.
        """
        for node in self.nodes.values():
            cast(Block, node).freeze()
        if self.plain:
            return
        if self.projection is not None and (routers or not self.residual):
            self.projection.requires_grad_(False)
            self.projection = FrozenBatchNorm2d.convert_frozen_batchnorm(self.projection)
        if routers:
            self.requires_grad_(False)

    def _project(self, x: Tensor) -> Tensor:
        """P(x), what node 0 sends along every edge but 0 → 1."""
        if self.projection is not None:
            return self.projection(x)
        shortcut = self.node(1).shortcut if self.residual else None
        return x if shortcut is None else shortcut(x)

    def _sum(self, inputs: Sequence[Tensor | None], row: Tensor) -> Tensor:
        """The gathered sum of a node, over all its edges."""
        if self.residual and len(inputs) == 1:
            return cast(Tensor, inputs[0])  # the chain's first edge alone, of weight 1
        return gather(cast(Sequence[Tensor], inputs), row)

    def _sum_open(self, inputs: Sequence[Tensor | None], rows: Sequence[Sequence[float]]) -> Tensor:
        """The gathered sum over open edges, for the samples that have one."""
        if self.residual and not any(any(weights[:-1]) for weights in rows):
            return cast(Tensor, inputs[-1])  # the chain alone
        return gather_open(inputs, rows)

    def _f(self, j: int, total: Tensor, projected: Tensor) -> Tensor:
        """f_j of Eq. 3, of the gathered sum ``total``."""
        block = self.node(j)
        if not self.residual:
            return block.branch(block.activation(total))
        if j == 1 and block.shortcut is not None:
            return block.activation(block.branch(total) + projected)
        return block(total)

    def _run_where_present(
        self, j: int, inputs: Sequence[Tensor | None], row: Tensor, projected: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Node j, run for the samples in which it is present.

        Returns:
            x_j, 0 in the other samples; None if there is no sample to run it for. In which samples
            it is present, [B]; None for all.
        """
        rows = row.tolist()
        fed = [any(weights) for weights in rows]
        present = None if all(fed) else torch.tensor(fed, device=row.device)
        if not any(fed):
            return None, present
        x_present = self._f(j, self._sum_open(inputs, rows), projected)
        if present is None:
            return x_present, None
        x_j = x_present.new_zeros(len(fed), *x_present.shape[1:])
        x_j[present] = x_present
        return x_j, present


class _Edges:
    """The edge weights of one forward pass of one :class:`DynamicGraph`."""

    def __init__(self, graph: DynamicGraph, pool: Tensor) -> None:
        self.graph = graph
        self.pool = pool
        self.alpha = AdjacencyBuffer(graph.num_nodes)
        self.weight = AdjacencyBuffer(graph.num_nodes) if graph.residual else self.alpha
        self.alpha_to_output: list[Tensor] = []  # before Eq. 5

    def write(self, i: int, x: Tensor | None, present: Tensor | None) -> None:
        """Route node i, whose output is ``x`` (None: absent in every sample), into column i.

        ``present`` [B] tells in which samples node i is present, None for all.
        """
        graph = self.graph
        if x is None:
            absent = self.pool.new_zeros(self.pool.shape[0], graph.num_nodes - 1 - i)
            self.alpha.write(absent)
            self.alpha_to_output.append(absent[:, -1])
            return
        if (
            str(i) not in graph.routers
        ):  # the last block of the residual wiring: its one edge is fixed
            chain = self.pool.new_ones(self.pool.shape[0], 1)
            self.alpha.write(chain)
            self.weight.write(chain)
            return
        alpha = graph.routers[str(i)](x, self.pool)
        if present is not None:
            alpha = alpha * present[:, None]
        opened = alpha * threshold_gate(alpha, graph.thresholds[i])
        if graph.residual:
            chain = torch.ones_like(alpha[:, :1])
            self.alpha.write(torch.cat([chain, opened], dim=1))
            self.weight.write(torch.cat([chain, graph.gammas[str(i)] * opened], dim=1))
        else:
            self.alpha.write(opened)
            self.alpha_to_output.append(alpha[:, -1])

    def output_row(self) -> Tensor:
        """The weights into the output node, [B, N - 1]; its strongest edge opened again where all
        were closed."""
        row = self.weight.read(self.graph.num_nodes - 1)
        if self.graph.residual:
            return row
        alpha = torch.stack(self.alpha_to_output, dim=1)
        strongest = F.one_hot(alpha.argmax(dim=1), alpha.shape[1])
        closed = row.eq(0).all(dim=1, keepdim=True)
        # Even an α that underflows to 0 keeps the sample in the batch.
        return row + alpha.clamp(min=torch.finfo(alpha.dtype).tiny) * strongest * closed

    def wiring(self, output_row: Tensor) -> Wiring:
        """What the pass decided, given the output node's row."""
        alpha, weight = self.alpha.matrix().detach(), self.weight.matrix().detach()
        weight[:, -1, :-1] = output_row.detach()
        if not self.graph.residual:
            alpha = weight
        return Wiring(alpha, weight)
