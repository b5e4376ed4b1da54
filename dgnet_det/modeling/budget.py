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
from dgnet_det.graph.routing import EdgeWeights
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.observation import dgnet_of, dynamic_graphs

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
    for name, stage in backbone.stages().items():
        in_size, size = size, size // stage.stride
        if isinstance(stage, DynamicGraph):
            costs[name] = _costs_of_graph(stage, in_size, size)
    return costs


class BudgetLoss:
    """``weight`` · max(0, share - ``budget``), where share is that of the multiply-adds of open
    edges in those of all edges, as :func:`edge_costs` counts them, averaged over the batch.

    Differentiable in α and τ by the surrogate of Eq. 5's step, see :func:`.apply_threshold`.
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
        self._shares: dict[str, Tensor] = {}  # by graph, of the latest forward pass
        for name, graph in dynamic_graphs(backbone).items():
            shares_of_edges = (costs[name] / total).float()
            graph.observers.append(partial(self._keep, name, graph, shares_of_edges))

    def __call__(self) -> Tensor:
        """The loss of the latest forward pass in training mode, a scalar. To be called once."""
        share = torch.stack(list(self._shares.values())).sum()
        self._shares.clear()
        return self.weight * F.relu(share - self.budget)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: not the forward pass, whose gradients cannot be copied."""
        return {**self.__dict__, "_shares": {}}

    def _keep(
        self, name: str, graph: DynamicGraph, shares_of_edges: Tensor, weights: EdgeWeights
    ) -> None:
        if graph.training and torch.is_grad_enabled():
            shares = weights.gate * shares_of_edges.to(weights.gate.device)
            self._shares[name] = shares.sum(dim=(1, 2)).mean()


def budget_loss(cfg: CfgNode, model: nn.Module) -> BudgetLoss | None:
    """What ``MODEL.DGNET.SPARSITY_WEIGHT`` and ``SPARSITY_BUDGET`` ask for; None if the weight is
    0.

    Raises:
        UserError: as :class:`BudgetLoss`, or the model has no DG-Net backbone.
    """
    dgnet = cfg.MODEL.DGNET
    if dgnet.SPARSITY_WEIGHT == 0:
        return None
    return BudgetLoss(dgnet_of(model), weight=dgnet.SPARSITY_WEIGHT, budget=dgnet.SPARSITY_BUDGET)


def add_budget_loss(model: nn.Module, loss: BudgetLoss) -> None:
    """Make a detector of Detectron2 return ``loss_budget`` beside its own losses in training."""
    # Not a closure: a copy of the model has a copy of the loss.
    model.register_forward_hook(partial(_with_loss, loss))


def _with_loss(loss: BudgetLoss, model: nn.Module, _: Any, output: Any) -> Any:
    return {**output, "loss_budget": loss()} if model.training else output


def _costs_of_graph(graph: DynamicGraph, in_size: int, out_size: int) -> Tensor:
    carried = graph.out_channels * out_size**2
    costs = graph.edges.double() * carried
    if graph.fixed_chain:  # the blocks run in any case
        return costs
    raw = graph.in_channels * in_size**2
    costs[1, 0] *= raw / carried
    for j in map(int, graph.nodes):
        shape = (graph.in_channels, in_size) if j == 1 else (graph.out_channels, out_size)
        router = sum(p.numel() for p in graph.routers[str(j)].parameters() if p.dim() == 2)
        # Pooling for the router reads every element once.
        node = _branch_macs(graph, j, *shape) + carried + router
        costs[j, graph.edges[j]] += node / int(graph.edges[j].sum())
    return costs


def _branch_macs(graph: DynamicGraph, j: int, channels: int, size: int) -> int:
    # A copy, since a norm in training mode would count what passes.
    block = copy.deepcopy(graph.node(j))
    device = graph.thresholds.device
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        block.eval().branch(torch.empty(1, channels, size, size, device=device))  # type: ignore[attr-defined]
    return counter.get_total_flops() // 2
