"""Small networks that route between branches, and logits that follow the image."""

import torch
from detectron2.layers import ShapeSpec
from torch import nn

from dgnet_det.config import get_cfg
from dgnet_det.drnet.branches import CELL, SKIP
from dgnet_det.modeling.backbone import DGNet, build_drnet_backbone
from dgnet_det.modeling.observation import routed_stages

STAGES = ("res2", "res3", "res4", "res5")
FAMILIES = {
    "resnet": {"depth": 50, "stem_out_channels": 8, "res2_out_channels": 16, "width_per_group": 4},
    "mobilenetv2": {},
    "regnet": {"name": "Y_400M"},
    "cell": {},
}
# The config's groups and keys of what the tests give, where it is not a key of MODEL.RESNETS.
KEYS = {
    "name": "DGNET.REGNET",
    "freeze_at": "BACKBONE.FREEZE_AT",
    "routed_stages": "DGNET.STAGES",
    **{name: f"DRNET.{name.upper()}" for name in ("branches", "temperature", "pruned_branches")},
}


def drnet(family: str, **arguments: object) -> DGNet:
    """A backbone as the config that ``arguments`` describe."""
    cfg = get_cfg()
    cfg.MODEL.DGNET.FAMILY = family
    options = {"norm": "FrozenBN", "out_features": STAGES, "freeze_at": 0, "stride_in_1x1": False}
    if arguments.get("depth") == 18:
        options["res2_out_channels"] = 64
    for name, value in {**options, **arguments}.items():
        key = KEYS.get(name, f"RESNETS.{name.upper()}")
        cfg.merge_from_list([f"MODEL.{key}", value])
    return build_drnet_backbone(cfg, ShapeSpec(channels=3)).eval()


def routed_backbone(family: str, **arguments: object) -> DGNet:
    """A backbone whose choices follow the image, in evaluation mode."""
    branches = CELL if family == "cell" else SKIP
    options = {"branches": branches, "temperature": (1.0, 1.0), **FAMILIES[family], **arguments}
    backbone = drnet(family, **options)
    choose_at_random(backbone)
    return backbone


def choose_at_random(model: nn.Module) -> None:
    """Give the RouterNets of a model values under which choices differ between images."""
    for stage in routed_stages(model).values():
        for parameter in stage.routers.parameters():
            nn.init.normal_(parameter)
        for router in stage.routers.values():
            nn.init.zeros_(router.linear.bias)


def images(batch: int = 6, side: int = 64) -> torch.Tensor:
    """Normalised images that differ in colour and contrast."""
    return torch.randn(batch, 3, side, side) * torch.rand(batch, 3, 1, 1) * 3 + torch.randn(
        batch, 3, 1, 1
    )
