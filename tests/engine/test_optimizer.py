"""Detectron2's parameter groups, but for what decides on edges."""

import pytest
import torch
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from helpers.configs import ROOT
from torch import nn

from dgnet_det.config import load_cfg
from dgnet_det.engine.optimizer import build_optimizer
from dgnet_det.modeling.build import build_model

DECIDING = (".routers.", ".thresholds", ".gammas.")


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter, each of which is there once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [
        (names[parameter], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("edge_weights", ["dynamic", "static", "none"])
def test_the_groups(edge_weights: str) -> None:
    cfg = load_cfg(
        str(ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_18_residual_FPN_1x.yaml"),
        ["MODEL.DGNET.EDGE_WEIGHTS", edge_weights, "MODEL.RESNETS.NORM", "BN", "SOLVER.BASE_LR",
         "0.02", "SOLVER.WEIGHT_DECAY", "0.001", "SOLVER.WEIGHT_DECAY_NORM", "0.0005",
         "SOLVER.BIAS_LR_FACTOR", "2.0", "SOLVER.WEIGHT_DECAY_BIAS", "0.0003",
         "SOLVER.ROUTER_LR_FACTOR", "10.0"],
    )  # fmt: skip
    model = build_model(cfg)
    theirs = settings(build_detectron2_optimizer(cfg, model), model)
    optimizer = build_optimizer(cfg, model)
    ours = settings(optimizer, model)
    assert theirs.keys() == ours.keys()
    deciding = {name for name in ours if any(part in name for part in DECIDING)}
    assert bool(deciding) == (edge_weights != "none")
    for name, (lr, decay) in theirs.items():
        expected = (pytest.approx(10 * lr), 0.0) if name in deciding else (lr, decay)
        assert ours[name] == expected, name
    # The largest group's learning rate is the one that is logged.
    assert max(optimizer.param_groups, key=lambda g: len(g["params"]))["lr"] == 0.02
    if edge_weights == "dynamic":
        bias = "backbone.bottom_up.res3.0.routers.0.linear.bias"
        assert ours[bias] == (pytest.approx(0.4), 0.0)
