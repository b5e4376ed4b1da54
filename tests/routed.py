"""Small networks that route between branches, and logits that follow the image."""

from collections.abc import Sequence

import torch
from torch import nn

from dgnet_det.drnet.branches import CELL, SKIP
from dgnet_det.modeling.backbone import DGNet, make_drnet
from dgnet_det.modeling.observation import routed_stages

STAGES = ("res2", "res3", "res4", "res5")
FAMILIES = {
    "resnet": {"depth": 50, "stem_out_channels": 8, "res2_out_channels": 16, "width_per_group": 4},
    "mobilenetv2": {},
    "regnet": {"name": "Y_400M"},
    "cell": {},
}


def routed_backbone(family: str, *, norm: str = "FrozenBN", **arguments: object) -> DGNet:
    """A backbone whose choices follow the image, in evaluation mode."""
    branches: Sequence[str] = CELL if family == "cell" else SKIP
    options = {"branches": branches, "out_features": STAGES, **FAMILIES[family], **arguments}
    backbone = make_drnet(family, norm=norm, **options).eval()
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
