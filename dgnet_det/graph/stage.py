"""A stage as a complete directed acyclic graph (Eq. 3), whatever the family of its blocks."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from dgnet_det.graph.aggregation import Sent, gather, gather_open, not_kept, send
from dgnet_det.graph.routing import (
    AdjacencyBuffer,
    Router,
    StaticRouter,
    averaging_weights,
    spread,
    threshold_gate,
)
from dgnet_det.graph.topology import Edge, all_targets, routed_targets, sources_of

WIRINGS = ("paper", "residual")
EDGE_WEIGHTS = ("dynamic", "static", "none")


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


# A network's stem and, for each of res2..res5, the blocks of each of its graphs.
Network = tuple[CNNBlockBase, list[list[list[Block]]]]


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

    Edges may be pruned: the graph is built without them, and in the paper wiring without the blocks
    that lie on no path to the output any more. In the residual wiring, a graph that keeps none but
    the chain is the plain stage.

    Module names are part of checkpoints: ``nodes.{1..n}``, ``routers.{i}``, ``thresholds`` (one τ
    per router, in their order), ``gammas.{i}`` (residual wiring), ``projection`` (where node 1 has
    no shortcut projection to share).

    After each eager forward pass ``self.observer`` is called with a :class:`Wiring`: register a
    forward hook on it.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        wiring: str,
        edge_weights: str,
        norm: str | Callable,
        pruned: Collection[Edge] = (),
    ) -> None:
        """
        Args:
            blocks: the stage's blocks in order. With edge weights, in the paper wiring, without
                shortcuts.
            wiring: ``paper`` or ``residual``.
            edge_weights: ``dynamic``, ``static`` or ``none``.
            norm: of the projection, as for :func:`detectron2.layers.get_norm`.
            pruned: edges that are not there. None with edge weights ``none``.

        Raises:
            UserError: as :func:`routed_targets`.
        """
        super().__init__()
        self.residual = wiring == "residual"
        self.in_channels, self.stride = blocks[0].in_channels, blocks[0].stride
        self.out_channels = blocks[-1].out_channels
        self.num_nodes = len(blocks) + 2
        # The edges that routers weigh, as the nodes that each router's node feeds with them.
        self.routed: dict[int, Sequence[int]] = {}
        if edge_weights != "none":
            self.routed = routed_targets(self.num_nodes, pruned, residual=self.residual)
        self.plain = not self.routed
        numbered = enumerate(cast(Sequence[nn.Module], blocks), start=1)
        keeps_all = self.residual or self.plain
        self.nodes = nn.ModuleDict(
            {str(j): x for j, x in numbered if keeps_all or j in self.routed}
        )
        if self.plain:
            return

        # All edges, those of the fixed chain too: the nodes that each node feeds, and is fed by.
        self.targets = all_targets(self.routed, self.num_nodes, residual=self.residual)
        self.sources = sources_of(self.targets)
        # The same in all blocks, so the last one's while that is there.
        last = [*blocks[:1], *cast(Collection[Block], self.nodes.values())][-1]
        self.activation = last.activation

        self.projection: nn.Module | None = None
        changes_shape = self.stride != 1 or self.in_channels != self.out_channels
        is_shared = self.residual and blocks[0].shortcut is not None
        if changes_shape and 0 in self.routed and not is_shared:
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
        self.routers = nn.ModuleDict(
            {str(i): router(self.out_channels, len(nodes)) for i, nodes in self.routed.items()}
        )
        self.thresholds = nn.Parameter(torch.zeros(len(self.routed)))
        if self.residual:
            self.gammas = nn.ParameterDict(
                {str(i): torch.zeros(len(nodes)) for i, nodes in self.routed.items()}
            )
        self.observer = nn.Identity()

    def node(self, j: int) -> Block:
        """The block of node j, 1 ≤ j ≤ n."""
        return cast(Block, self.nodes[str(j)])

    def routed_edges(self) -> Tensor:
        """The edges that routers weigh, a mask [N, N] with row j for the edges into node j. None in
        the plain stage, and in the residual wiring not those of the fixed chain."""
        edges = torch.zeros(self.num_nodes, self.num_nodes, dtype=torch.bool)
        for i, nodes in self.routed.items():
            edges[list(nodes), i] = True
        return edges

    def threshold(self, i: int) -> Tensor:
        """τ of node i, a scalar tensor. The node must have a router."""
        return self.thresholds[list(self.routed).index(i)]

    def forward(self, x: Tensor, valid: Tensor | None = None, keep_sums: bool = False) -> Tensor:
        """
        Args:
            x: the stage's input, [B, C_in, H, W].
            valid: [B, 2], height and width of the part of the stage's *output* that is no padding;
                None for all of it.
            keep_sums: in training, keep the gathered sums for the backward pass instead of making
                them again: for ``torch.utils.checkpoint``, which makes everything again.

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
        edges.write(0, projected, present=None)
        for j in range(1, self.num_nodes - 1):
            if str(j) not in self.nodes:
                edges.write(j, None, None)
                continue
            row = edges.weight.read(j)
            if skip:
                x_j, present = self._run_where_present(j, edges, row.tolist(), x, projected)
            else:
                x_j = self._run(j, edges, row, x, projected, keep_sums=keep_sums)
                present = None if self.residual else row.ne(0).any(dim=1)
            edges.write(j, x_j, present)
        row = edges.output_row()
        output = (
            edges.output_open(row.tolist())
            if skip
            else gather(edges.sent_to(self.num_nodes - 1), row)
        )
        if not self.residual:
            output = self.activation(output)
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
        if shortcut is not None:
            return shortcut(x)
        # Where node 0 has no router, nobody reads more of it than its size.
        return x if 0 in self.routed else x[:, :, :: self.stride, :: self.stride]

    def _run(
        self, j: int, edges: "_Edges", row: Tensor, x: Tensor, projected: Tensor, keep_sums: bool
    ) -> Tensor:
        """Node j, for all samples; ``row`` are the weights of its edges. Node 1 reads the stage's
        input ``x``."""
        if j == 1 and self.residual:
            return self._f(j, x, projected)
        inputs = [send(x)[0]] if j == 1 else edges.sent_to(j)
        total = gather(inputs, row)
        if keep_sums or not total.requires_grad:
            return self._f(j, total, projected)
        activation = nn.Identity() if self.residual else self.activation
        with not_kept(total, inputs, row, activation):
            return self._f(j, total, projected)

    def _f(self, j: int, total: Tensor, projected: Tensor) -> Tensor:
        """f_j of Eq. 3, of the gathered sum ``total``."""
        block = self.node(j)
        if not self.residual:
            return block.branch(block.activation(total))
        if j == 1 and block.shortcut is not None:
            return block.activation(block.branch(total) + projected)
        return block(total)

    def _run_where_present(
        self, j: int, edges: "_Edges", rows: list[list[float]], x: Tensor, projected: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Node j, run for the samples in which it is present; ``rows`` are the weights of its
        edges.

        Returns:
            x_j, 0 in the other samples; None if there is no sample to run it for. In which samples
            it is present, [B]; None for all.
        """
        fed = [any(weights) for weights in rows]
        present = None if all(fed) else torch.tensor(fed, device=x.device)
        if not any(fed):
            return None, present
        total = edges.sum_open(j, rows, raw=x if j == 1 else None)
        x_present = self._f(j, total, projected)
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
        self.alpha = AdjacencyBuffer(graph.targets)
        self.weight = AdjacencyBuffer(graph.targets) if graph.residual else self.alpha
        self.unclosed = AdjacencyBuffer(graph.targets)  # α before Eq. 5, in the paper wiring
        self.sent: list[Sent | None] = []  # None: absent in every sample

    def sent_to(self, j: int) -> list[Sent]:
        """What node j's inputs sent, where none can be absent in every sample."""
        return [cast(Sent, self.sent[i]) for i in self.graph.sources[j]]

    def sum_open(self, j: int, rows: list[list[float]], raw: Tensor | None = None) -> Tensor:
        """The gathered sum of node j, a block's, over its open edges, for the samples that have
        one. The next sum is written over it.

        ``raw`` is the stage's input for node 1, whose one edge carries it.
        """
        inputs = [raw] if raw is not None else self._tensors_to(j)
        if self._is_chain_alone(rows):
            return cast(Tensor, inputs[-1])
        return gather_open(inputs, rows)

    def output_open(self, rows: list[list[float]]) -> Tensor:
        """The gathered sum of the output node over its open edges. It takes the place of the last
        block's output, which nothing else reads."""
        inputs = self._tensors_to(self.graph.num_nodes - 1)
        if self._is_chain_alone(rows):
            return cast(Tensor, inputs[-1])
        # The input may be someone else's, too.
        if inputs[-1] is None or self.graph.sources[-1][-1] == 0:
            return gather_open(inputs, rows).clone()
        return gather_open(inputs, rows, into_last=True)

    def _tensors_to(self, j: int) -> list[Tensor | None]:
        return [sent and sent.x for sent in (self.sent[i] for i in self.graph.sources[j])]

    def _is_chain_alone(self, rows: list[list[float]]) -> bool:
        return self.graph.residual and not any(any(weights[:-1]) for weights in rows)

    def write(self, i: int, x: Tensor | None, present: Tensor | None) -> None:
        """Route node i, whose output is ``x`` (None: absent in every sample), into column i.

        ``present`` [B] tells in which samples node i is present, None for all.
        """
        graph = self.graph
        if x is None:
            self.sent.append(None)
            absent = self.pool.new_zeros(self.pool.shape[0], len(graph.targets[i]))
            self.unclosed.write(absent)
            self.alpha.write(absent)
            return
        sent, average = send(x, self.pool if i in graph.routed else None)
        self.sent.append(sent)
        # Of the chain of the residual wiring alone: its last block's, to begin with.
        if average is None:
            chain = self.pool.new_ones(self.pool.shape[0], 1)
            self.alpha.write(chain)
            self.weight.write(chain)
            return
        alpha = graph.routers[str(i)](average)
        if present is not None:
            alpha = alpha * present[:, None]
        opened = alpha * threshold_gate(alpha, graph.threshold(i))
        if graph.residual:
            chain = torch.ones_like(alpha[:, :1])
            self.alpha.write(torch.cat([chain, opened], dim=1))
            self.weight.write(torch.cat([chain, graph.gammas[str(i)] * opened], dim=1))
        else:
            self.unclosed.write(alpha)
            self.alpha.write(opened)

    def output_row(self) -> Tensor:
        """The weights into the output node, [B, k]; its strongest edge opened again where all
        were closed."""
        row = self.weight.read(self.graph.num_nodes - 1)
        if self.graph.residual:
            return row
        alpha = self.unclosed.read(self.graph.num_nodes - 1)
        strongest = F.one_hot(alpha.argmax(dim=1), alpha.shape[1])
        closed = row.eq(0).all(dim=1, keepdim=True)
        # Even an α that underflows to 0 keeps the sample in the batch.
        return row + alpha.clamp(min=torch.finfo(alpha.dtype).tiny) * strongest * closed

    def wiring(self, output_row: Tensor) -> Wiring:
        """What the pass decided, given the output node's row."""
        alpha, weight = self.alpha.matrix().detach(), self.weight.matrix().detach()
        weight[:, -1] = spread(output_row.detach(), self.graph.sources[-1], self.graph.num_nodes)
        if not self.graph.residual:
            alpha = weight
        return Wiring(alpha, weight)
