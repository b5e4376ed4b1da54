"""The multiply-adds that each edge of a graph, or branch of a routed stage, causes."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.graph.stage import DynamicGraph, PlainStage
from dgnet_det.modeling.backbone.base import StagedBackbone
from dgnet_det.modeling.counting import NOTHING, Counts, symbolic_counts

# Pixels of the image's sides. Shares are the same at any size, but for the rounding of odd ones.
SIDE = 256


class Costs(NamedTuple):
    """Multiply-adds for an image of ``SIDE`` × ``SIDE`` pixels."""

    # By stage, those of each decision: [N, N] of a graph's edges, row j for those into node j;
    # [C, K] of the branches of a routed stage's connections that have a choice.
    decided: dict[str, Tensor]
    fixed: float  # of the parts that always run
    cheapest: float  # of the cheapest decisions
    whole: float  # of all edges, or of the backbone with the dearest branch of every connection

    @classmethod
    def of(cls, backbone: StagedBackbone) -> "Costs":
        """Count the costs of a backbone."""
        sizes = stage_sizes(backbone, (SIDE, SIDE)).items()
        of_graphs = {
            name: _costs_of_graph(stage, in_size[0], out_size[0])
            for name, (stage, in_size, out_size) in sizes
            if isinstance(stage, DynamicGraph)
        }
        if of_graphs:
            return cls(of_graphs, 0.0, 0.0, sum(float(cost.sum()) for cost in of_graphs.values()))
        found = symbolic_counts(backbone, backbone.stem.in_channels, (SIDE, SIDE))
        rows: dict[str, list[list[int]]] = {}
        fixed = cheapest = dearest = found[""].macs
        for (name, _), branches in branch_counts(backbone, found).items():
            macs = {branch: counts.macs for branch, counts in branches.items()}
            rows.setdefault(name, []).append(list(macs.values()))
            fixed -= sum(macs.values())
            cheapest -= sum(macs.values()) - min(macs.values())
            dearest -= sum(macs.values()) - max(macs.values())
        decided = {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}
        return cls(decided, fixed, cheapest, dearest)

    def share(self, gates: Mapping[str, Tensor]) -> Tensor:
        """The share of the whole that decisions cause, [B], differentiable. ``gates`` are by stage,
        [B, N, N] or [B, C, K], from 0 to 1 where an edge is open or a branch runs."""
        parts = [
            (gate * (self.decided[name] / self.whole).to(gate)).sum(dim=(1, 2))
            for name, gate in gates.items()
        ]
        return self.fixed / self.whole + torch.stack(parts).sum(dim=0)


def branch_counts(
    backbone: StagedBackbone, found: Mapping[str, Counts]
) -> dict[tuple[str, int], dict[str, Counts]]:
    """Of the :func:`symbolic_counts` that were ``found`` in ``backbone``, those of the branches of
    every connection that has a choice, by stage and connection."""
    return {
        (name, j): {
            branch: found.get(f"{name}.{stage.module_name(j, branch)}", NOTHING)
            for branch in stage.branches[j]
        }
        for name, stage in backbone.stages().items()
        if isinstance(stage, RoutedStage)
        for j in stage.connections
    }


def stage_sizes(
    backbone: StagedBackbone, size: tuple[int, int]
) -> dict[str, tuple[PlainStage, tuple[int, int], tuple[int, int]]]:
    """Each stage of ``backbone`` and the (height, width) of its input and output, for an image of
    ``size``."""

    def strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
        return -(-size[0] // stride), -(-size[1] // stride)

    size = strided(size, backbone.stem.stride)
    sizes = {}
    for name, stage in backbone.stages().items():
        in_size, size = size, strided(size, stage.stride)
        sizes[name] = stage, in_size, size
    return sizes


def _costs_of_graph(graph: DynamicGraph, in_side: int, out_side: int) -> Tensor:
    """Multiply-adds that each edge causes when it is open, [N, N], row j for the edges into node j.

    They are one per element of the tensor that the edge carries. In the paper wiring a node, block
    and router, runs only while an edge into it is open: these edges share its multiply-adds
    equally. Parts that always run (stem, projections, node 0's router, the residual wiring's
    blocks) are not counted.
    """
    carried = graph.out_channels * out_side**2
    costs = graph.edges.double() * carried
    if graph.has_shortcuts:  # the chain keeps every block running
        return costs
    raw = graph.in_channels * in_side**2
    costs[1, 0] *= raw / carried
    for j in map(int, graph.nodes):
        channels, side = (graph.in_channels, in_side) if j == 1 else (graph.out_channels, out_side)
        router = sum(p.numel() for p in graph.routers[str(j)].parameters() if p.dim() == 2)
        # Pooling for the router reads every element once.
        block = symbolic_counts(graph.nodes[str(j)], channels, (side, side))[""]
        node = block.macs + carried + router
        costs[j, graph.edges[j]] += node / int(graph.edges[j].sum())
    return costs
