"""Detectron2's optimizer, with another learning rate for routers, thresholds and gammas."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2 import solver
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from dgnet_det.modeling.backbone.base import StagedBackbone

DECIDING = {"routers", "thresholds", "gammas"}  # parts of a graph


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's optimizer with the groups of :func:`separate_routers`, by
    ``SOLVER.ROUTER_LR_FACTOR``."""
    optimizer = solver.build_optimizer(cfg, model)
    groups = separate_routers(optimizer.param_groups, model, cfg.SOLVER.ROUTER_LR_FACTOR)
    optimizer.param_groups[:] = groups
    return optimizer


def get_optimizer_params(
    model: nn.Module, *, base_lr: float, router_lr_factor: float, **options: Any
) -> list[dict[str, Any]]:
    """The groups for a LazyConfig's optimizer: those of Detectron2's
    ``get_default_optimizer_params`` through :func:`separate_routers`."""
    groups = get_default_optimizer_params(model, base_lr=base_lr, **options)
    return separate_routers(groups, model, router_lr_factor)


def separate_routers(
    groups: Sequence[dict[str, Any]], model: nn.Module, lr_factor: float
) -> list[dict[str, Any]]:
    """Move routers, thresholds τ and gammas of ``model`` into parameter groups of their own. Their
    learning rate is ``lr_factor`` times as high, and they have no weight decay, which would pull α
    to 1/2 and γ to 0."""
    deciding = {
        parameter
        for backbone in model.modules()
        if isinstance(backbone, StagedBackbone)
        for name, parameter in backbone.named_parameters()
        if not DECIDING.isdisjoint(name.split("."))
    }
    others, own = [], []
    for group in groups:
        others.append({**group, "params": [p for p in group["params"] if p not in deciding]})
        moved = [p for p in group["params"] if p in deciding]
        own.append({**group, "params": moved, "lr": lr_factor * group["lr"], "weight_decay": 0.0})
    return [group for group in [*others, *own] if group["params"]]
