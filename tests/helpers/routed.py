"""Small networks that route between branches, and logits that follow the image."""

import torch
from torch import nn

from dgnet_det.drnet.branches import CELL, SKIP
from dgnet_det.modeling.backbone.drnet import DRNet, make_drnet
from dgnet_det.modeling.observation import routed_stages

STAGES = ("res2", "res3", "res4", "res5")
FAMILIES = {
    "resnet": {"depth": 50, "stem_out_channels": 8, "res2_out_channels": 16, "width_per_group": 4},
    "mobilenetv2": {},
    "regnet": {"name": "Y_400M"},
    "cell": {},
}


def drnet(family: str, **arguments: object) -> DRNet:
    """A backbone in evaluation mode."""
    branches = CELL if family == "cell" else SKIP
    options = {"branches": branches, "norm": "FrozenBN", "out_features": STAGES, **arguments}
    return make_drnet(family, **options).eval()


def routed_backbone(family: str, **arguments: object) -> DRNet:
    """A backbone whose choices follow the image, in evaluation mode."""
    backbone = drnet(family, **{**FAMILIES[family], **arguments})
    choose_at_random(backbone)
    return backbone


def choose_at_random(model: nn.Module) -> None:
    """Give the RouterNets of a model values under which choices differ between images."""
    for stage in routed_stages(model).values():
        for router in stage.routers.values():
            nn.init.normal_(router.hidden.weight, std=0.3)
            nn.init.normal_(router.linear.weight, std=0.3)
            nn.init.zeros_(router.linear.bias)


def images(batch: int = 6, side: int = 64) -> torch.Tensor:
    """Normalised images that differ in colour and contrast."""
    return torch.randn(batch, 3, side, side) * torch.rand(batch, 3, 1, 1) * 3 + torch.randn(
        batch, 3, 1, 1
    )
