"""A loss on the multiply-adds that decisions cause. It is not in the papers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.errors import UserError
from dgnet_det.graph.decisions import Decisions
from dgnet_det.graph.stage import PlainStage
from dgnet_det.modeling.backbone.base import StagedBackbone
from dgnet_det.modeling.costs import Costs
from dgnet_det.modeling.observation import dgnet_of, routed_stages


class BudgetLoss:
    """``weight`` · max(0, share - ``budget``), where share is the multiply-adds of open edges as a
    share of the whole, see :class:`Costs`, averaged over the batch. The surrogate of Eq. 5's step
    makes it differentiable, see :func:`.apply_threshold`.

    Of routed stages it is ``weight`` · |share - ``budget``|, where a branch counts w times its
    multiply-adds; ``weight`` grows from 0 in the first half of the soft phase.
    """

    def __init__(self, backbone: StagedBackbone, *, weight: float, budget: float = 0.0) -> None:
        self.weight, self.budget = weight, budget
        self.costs, self.two_sided = Costs.of(backbone), bool(routed_stages(backbone))
        self._gates: dict[str, Tensor] = {}  # by stage, of the latest forward pass
        self._part = 1.0  # of the weight
        for name in self.costs.decided:
            stage: Any = backbone.stages()[name]
            stage.decisions.register_forward_hook(partial(self._keep, name, stage))

    def __call__(self) -> Tensor:
        """The loss of the latest forward pass in training mode, a scalar. Call it once for each."""
        share = self.costs.share(self._gates).mean()
        self._gates.clear()
        above = share - self.budget
        return self._part * self.weight * (above.abs() if self.two_sided else F.relu(above))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the forward pass out of copies: its gradients cannot be copied."""
        return {**self.__dict__, "_gates": {}}

    def _keep(
        self,
        name: str,
        stage: PlainStage,
        module: nn.Module,
        inputs: Any,
        make: Callable[[], Decisions],
    ) -> None:
        if stage.training:
            self._gates[name] = make().gate
            if isinstance(stage, RoutedStage):
                self._part = min(1.0, 2 * stage.progress / stage.soft_phase)


def budget_loss(cfg: CfgNode, model: nn.Module) -> BudgetLoss | None:
    """Build the loss of ``MODEL.DGNET.SPARSITY_WEIGHT`` and ``SPARSITY_BUDGET``, or of routed
    stages' ``MODEL.DRNET.BUDGET_WEIGHT`` and ``BUDGET``; None if the weight is 0.

    Raises:
        UserError: a number is out of its range, there is nothing to decide, the budget cannot be
            met, or the model has no DG-Net backbone.
    """
    dgnet, drnet = cfg.MODEL.DGNET, cfg.MODEL.DRNET
    routed = bool(routed_stages(model))
    weight, budget = dgnet.SPARSITY_WEIGHT, dgnet.SPARSITY_BUDGET
    key, keys = "MODEL.DGNET.SPARSITY_WEIGHT", f"SPARSITY_WEIGHT {weight}, SPARSITY_BUDGET {budget}"
    if routed:
        weight, budget = drnet.BUDGET_WEIGHT, drnet.BUDGET
        key, keys = "MODEL.DRNET.BUDGET_WEIGHT", f"BUDGET_WEIGHT {weight}, BUDGET {budget}"
    if weight == 0:
        return None
    if weight < 0 or not 0 <= budget < 1:
        raise UserError(
            f"{key.rpartition('.')[0]}.{keys}: give a weight of at least 0 and a budget from 0 to"
            " below 1"
        )
    loss = BudgetLoss(dgnet_of(model), weight=weight, budget=budget)
    if not loss.costs.decided:
        what = "branches to choose from" if routed else "edges to pay for"
        raise UserError(f"{key}: there are no {what}: set it to 0")
    least = loss.costs.cheapest / loss.costs.whole
    if budget < least:
        raise UserError(
            f"MODEL.DRNET.BUDGET {budget}: what runs in any case has a share of {least:.3f} of the"
            " multiply-adds: give at least that"
        )
    return loss


def add_budget_loss(model: nn.Module, loss: BudgetLoss) -> None:
    """Make a detector of Detectron2 return ``loss_budget`` beside its own losses in training."""
    # Not a closure: a copy of the model has a copy of the loss.
    model.register_forward_hook(partial(_with_loss, loss))


def _with_loss(loss: BudgetLoss, model: nn.Module, _: Any, output: Any) -> Any:
    return {**output, "loss_budget": loss()} if model.training else output
