"""A loss that pays for open edges by the multiply-adds that they cause. It is not in the paper."""

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dgnet_det.errors import UserError
from dgnet_det.graph.routing import threshold_gate
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.observation import dynamic_graphs

# Pixels of the image side that costs are counted for. Their shares are those at any size, but for
# the rounding of odd ones.
SIDE = 256


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
    costs = {}
    size = SIDE // backbone.stem.stride
    for stage in backbone.stage_names:
        for k, graph in enumerate(backbone.graphs(stage)):
            in_size, size = size, size // graph.stride
            if not graph.plain:
                costs[f"{stage}.{k}"] = _costs_of_graph(graph, in_size, size)
    return costs


class SparsityLoss:
    """``weight`` · max(0, share - ``budget``), where share is that of the multiply-adds of open
    edges in those of all edges, as :func:`edge_costs` counts them, averaged over the batch.

    Differentiable in α and τ by Eq. 5's surrogate, see :func:`threshold_gate`.
    """

    def __init__(self, backbone: DGNet, *, weight: float, budget: float = 0.0) -> None:
        """
        Args:
            backbone: it is listened to in training mode; its forward passes stay what they are.
            weight: of the loss.
            budget: the share that costs nothing.

        Raises:
            UserError: a number out of its range, or there are no edges.
        """
        if weight < 0 or not 0 <= budget < 1:
            raise UserError(
                f"MODEL.DGNET.SPARSITY_WEIGHT {weight}, SPARSITY_BUDGET {budget}: give a weight of"
                " at least 0 and a budget from 0 to below 1"
            )
        self.weight, self.budget = weight, budget
        costs = edge_costs(backbone)
        total = sum(float(cost.sum()) for cost in costs.values())
        if not total:
            raise UserError(
                "MODEL.DGNET.SPARSITY_WEIGHT: there are no edges to pay for"
                " (MODEL.DGNET.EDGE_WEIGHTS none): set it to 0"
            )
        self._shares: list[Tensor] = []
        backbone.register_forward_pre_hook(self._start)
        for name, graph in dynamic_graphs(backbone).items():
            pays = _GraphPays(graph, (costs[name] / total).float(), self._shares)
            for i in graph.routed:
                graph.routers[str(i)].register_forward_hook(partial(pays, i))

    def __call__(self) -> Tensor:
        """The loss of the latest forward pass in training mode, a scalar."""
        return self.weight * F.relu(torch.stack(self._shares).sum() - self.budget)

    def _start(self, backbone: nn.Module, args: Any) -> None:
        self._shares.clear()


def sparsity_loss(cfg: CfgNode, model: nn.Module) -> SparsityLoss | None:
    """What ``MODEL.DGNET.SPARSITY_WEIGHT`` and ``SPARSITY_BUDGET`` ask for; None if the weight is
    0.

    Raises:
        UserError: as :class:`SparsityLoss`, or the model has no DG-Net backbone.
    """
    dgnet = cfg.MODEL.DGNET
    if dgnet.SPARSITY_WEIGHT == 0:
        return None
    backbone = next((m for m in model.modules() if isinstance(m, DGNet)), None)
    if backbone is None:
        raise UserError("MODEL.DGNET.SPARSITY_WEIGHT: the backbone is no DG-Net: set it to 0")
    return SparsityLoss(backbone, weight=dgnet.SPARSITY_WEIGHT, budget=dgnet.SPARSITY_BUDGET)


def add_sparsity_loss(model: nn.Module, loss: SparsityLoss) -> None:
    """Make a detector of Detectron2 return ``loss_sparsity`` beside its own losses in training."""

    def add(model: nn.Module, args: Any, output: Any) -> Any:
        return {**output, "loss_sparsity": loss()} if model.training else output

    model.register_forward_hook(add)


class _GraphPays:
    """Called with every router's α in the order of the nodes, keeps each router's part of the
    share."""

    def __init__(self, graph: DynamicGraph, shares_of_edges: Tensor, shares: list[Tensor]) -> None:
        self.graph = graph
        self.shares_of_edges = shares_of_edges
        self.shares = shares
        self.open: dict[int, Tensor] = {}  # [B, number of targets]

    def __call__(self, i: int, router: nn.Module, args: Any, alpha: Tensor) -> None:
        graph = self.graph
        if not (graph.training and torch.is_grad_enabled()):
            return
        nodes = list(graph.routed[i])
        cost = self.shares_of_edges[nodes, i].to(alpha.device)
        gate = threshold_gate(alpha, graph.threshold(i))
        if i > 0 and not graph.residual:
            # A node that is absent for a sample sends nothing.
            gates = [self.open[k][:, graph.routed[k].index(i)] for k in graph.sources[i]]
            gate = gate * torch.stack(gates).any(dim=0)[:, None]
        self.open[i] = gate.detach()
        self.shares.append((gate * cost).sum(dim=1).mean())


def _costs_of_graph(graph: DynamicGraph, in_size: int, out_size: int) -> Tensor:
    carried = graph.out_channels * out_size**2
    costs = graph.routed_edges().double() * carried
    if graph.residual:
        return costs
    raw = graph.in_channels * in_size**2
    costs[1, 0] *= raw / carried
    for j in map(int, graph.nodes):
        shape = (graph.in_channels, in_size) if j == 1 else (graph.out_channels, out_size)
        router = sum(p.numel() for p in graph.routers[str(j)].parameters() if p.dim() == 2)
        # Pooling for the router reads every element once.
        node = _branch_macs(graph, j, *shape) + carried + router
        costs[j, list(graph.sources[j])] += node / len(graph.sources[j])
    return costs


def _branch_macs(graph: DynamicGraph, j: int, channels: int, size: int) -> int:
    # A copy, since a norm in training mode would count what passes.
    block = copy.deepcopy(graph.node(j))
    device = graph.thresholds.device
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        block.eval().branch(torch.empty(1, channels, size, size, device=device))  # type: ignore[attr-defined]
    return counter.get_total_flops() // 2
