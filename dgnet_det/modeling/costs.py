"""Multiply-adds that each decision causes: of the edges of graphs, and of the branches of routed
stages."""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.graph.stage import DynamicGraph, PlainStage
from dgnet_det.modeling.backbone import DGNet

# Pixels of the image side that costs are counted for. Their shares are those at any size, but for
# the rounding of odd ones.
SIDE = 256


class Costs(NamedTuple):
    """Multiply-adds of an image of ``SIDE`` × ``SIDE`` pixels.

    Of graphs, the whole is what all edges cause. Of routed stages, it is the whole backbone with
    the dearest branch of every connection.
    """

    # By stage, what each decision causes: [N, N] of a graph's edges, row j for those into node j;
    # [C, K] of the branches of a routed stage's connections that have a choice.
    decided: dict[str, Tensor]
    nobodys: float  # what runs in any case
    cheapest: float  # the least that can run
    whole: float

    @classmethod
    def of(cls, backbone: DGNet) -> "Costs":
        """The costs of a backbone."""
        if decided := edge_costs(backbone):
            return cls(decided, 0.0, 0.0, sum(float(cost.sum()) for cost in decided.values()))
        stages = {n: s for n, s in backbone.stages().items() if isinstance(s, RoutedStage)}
        macs = _macs(backbone, (3, SIDE)) if stages else {}
        # By connection, those of its branches.
        of_branches = {
            (name, j): {
                branch: macs.get(f"{name}.{stage.module_name(j, branch)}", 0)
                for branch in stage.branches[j]
            }
            for name, stage in stages.items()
            for j in map(int, stage.routers)
        }
        rows: dict[str, list[list[int]]] = {}
        for (name, _), costs in of_branches.items():
            rows.setdefault(name, []).append([costs.get(k, 0) for k in stages[name].columns])
        connections = [list(costs.values()) for costs in of_branches.values()]
        nobodys = macs.get("", 0) - sum(map(sum, connections))
        return cls(
            {name: torch.tensor(of_stage, dtype=torch.float64) for name, of_stage in rows.items()},
            nobodys,
            nobodys + sum(map(min, connections)),
            nobodys + sum(map(max, connections)),
        )

    def share(self, gates: Mapping[str, Tensor]) -> Tensor:
        """The share of the whole that decisions cause, [B], differentiable.

        Args:
            gates: by stage, [B, N, N] or [B, C, K]: 1 where an edge is open or a branch runs.
        """
        parts = [
            (gate * (self.decided[name] / self.whole).to(gate)).sum(dim=(1, 2))
            for name, gate in gates.items()
        ]
        return self.nobodys / self.whole + torch.stack(parts).sum(dim=0)


def edge_costs(backbone: DGNet) -> dict[str, Tensor]:
    """Multiply-adds that each edge causes when it is open, for an image of ``SIDE`` × ``SIDE``
    pixels.

    Its own are one per element of the tensor that it carries. In the paper wiring it also causes
    the node that it feeds, block and router, which does not run while all edges into it are closed:
    of that every edge into the node has an equal share. What runs in any
    case (stem, projections, node 0's router, the residual wiring's blocks) is nobody's.

    Returns:
        By graph, as :func:`dynamic_graphs` names them, [N, N], row j for the edges into node j.
    """
    return {
        name: _costs_of_graph(stage, in_size[0], out_size[0])
        for name, (stage, in_size, out_size) in stage_sizes(backbone, (SIDE, SIDE)).items()
        if isinstance(stage, DynamicGraph) and stage.targets
    }


def stage_sizes(
    backbone: DGNet, size: tuple[int, int]
) -> dict[str, tuple[PlainStage, tuple[int, int], tuple[int, int]]]:
    """Each stage of ``backbone`` with the sizes, (height, width), of its input and output, for an
    image of ``size``."""

    def strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
        return -(-size[0] // stride), -(-size[1] // stride)

    size = strided(size, backbone.stem.stride)
    sizes = {}
    for name, stage in backbone.stages().items():
        in_size, size = size, strided(size, stage.stride)
        sizes[name] = stage, in_size, size
    return sizes


def _costs_of_graph(graph: DynamicGraph, in_side: int, out_side: int) -> Tensor:
    carried = graph.out_channels * out_side**2
    costs = graph.edges.double() * carried
    if graph.fixed_chain:  # the blocks run in any case
        return costs
    raw = graph.in_channels * in_side**2
    costs[1, 0] *= raw / carried
    for j in map(int, graph.nodes):
        shape = (graph.in_channels, in_side) if j == 1 else (graph.out_channels, out_side)
        router = sum(p.numel() for p in graph.routers[str(j)].parameters() if p.dim() == 2)
        # Pooling for the router reads every element once.
        node = _macs(graph.nodes[str(j)], shape, method="branch")[""] + carried + router
        costs[j, graph.edges[j]] += node / int(graph.edges[j].sum())
    return costs


def _macs(module: nn.Module, shape: tuple[int, int], *, method: str = "") -> dict[str, int]:
    """Multiply-adds of a module in evaluation mode, or of one of its methods, under ``""``, and of
    the modules in it, by name, for one image of ``shape``, (channels, side)."""
    # A copy, since a norm in training mode would count what passes.
    module = copy.deepcopy(module).eval()
    device = next((parameter.device for parameter in module.parameters()), None)
    channels, side = shape
    counter = FlopCounterMode(display=False)
    # Modules are named from the one that is called.
    call = getattr(module, method) if method else module
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        call(torch.empty(1, channels, side, side, device=device))
    by_module = {
        name.partition(".")[2]: sum(by_operator.values()) // 2
        for name, by_operator in counter.get_flop_counts().items()
    }
    return by_module | {"": counter.get_total_flops() // 2}
