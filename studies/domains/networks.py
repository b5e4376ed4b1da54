"""The networks that are compared: a narrow ResNet-18 in several wirings."""

import math
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from dgnet_det.graph.routing import Router
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.modeling.backbone.dgnet import make_dgnet
from dgnet_det.modeling.backbone.resnet import BasicNode
from dgnet_det.modeling.classifier import ClassifierHead, DGNetClassifier

WIDTH = 16
GREY = [90.0]  # near mean and deviation of the pixels


class Arm(NamedTuple):
    """A network, and what is changed in its routers."""

    name: str  # on the page
    wiring: str
    edge_weights: str
    start: float = 0.5  # of σ in the routers
    router_lr: float = 1.0  # as a multiple of the other parameters'
    gain: float = 1.0  # α = gain · σ
    sharpness: float = 1.0  # 1 / T in σ(W · GAP(x) / T + b)
    is_normalised: bool = False  # whether routers read a normalised average, as in `residual`


def _dynamic(what: str, **changes: Any) -> Arm:
    return Arm(f"paper, dynamic, {what}", "paper", "dynamic", **changes)


ARMS = {
    "plain": Arm("plain", "residual", "none"),
    "se": Arm("plain with squeeze-and-excitation", "residual", "none"),
    "structure": Arm("paper, α ≡ 1", "paper", "static"),
    "static": Arm("paper, static", "paper", "static"),
    "dynamic": Arm("paper, dynamic", "paper", "dynamic"),
    "residual-static": Arm("residual, static", "residual", "static"),
    "residual-dynamic": Arm("residual, dynamic", "residual", "dynamic"),
    "start-0.5": _dynamic("α starts at 0.5"),
    "start-0.73": _dynamic("α starts at 0.73", start=0.73),
    "start-0.88": _dynamic("α starts at 0.88", start=0.88),
    "start-0.98": _dynamic("α starts at 0.98", start=0.98),
    "lr-3": _dynamic("routers learn 3 times as fast", router_lr=3.0),
    "lr-10": _dynamic("routers learn 10 times as fast", router_lr=10.0),
    "doubled": _dynamic("α = 2σ", gain=2.0),
    "sharp-4": _dynamic("temperature 1/4", sharpness=4.0),
    "normalised": _dynamic("normalised averages", is_normalised=True),
}


def build(key: str, num_classes: int) -> DGNetClassifier:
    """The classifier of an arm, for grey images."""
    arm = ARMS[key]
    backbone = make_dgnet(
        "resnet", wiring=arm.wiring, edge_weights=arm.edge_weights, norm="BN",
        out_features=["res5"], in_channels=1, depth=18,
        stem_out_channels=WIDTH, res2_out_channels=WIDTH,
    )  # fmt: skip
    for stage in backbone.stages().values():
        if key == "se":
            for block in stage.nodes.values():
                _add_excitation(cast(BasicNode, block))
        if not isinstance(stage, DynamicGraph):
            continue
        if key == "structure":
            for bias in stage.routers.parameters():
                nn.init.constant_(bias, 40.0)  # whose sigmoid is 1 in float32
            stage.routers.requires_grad_(False)
            stage.thresholds.requires_grad_(False)
        for router in stage.routers.values():
            if isinstance(router, Router):
                _change(router, arm)
    head = ClassifierHead(backbone.output_shape()["res5"].channels, num_classes)
    return DGNetClassifier(backbone, head, pixel_mean=GREY, pixel_std=GREY)


def _add_excitation(block: BasicNode) -> None:
    excitation = SqueezeExcitation(block.out_channels, block.out_channels // 4)
    block.conv2 = nn.Sequential(block.conv2, excitation)


def _change(router: Router, arm: Arm) -> None:
    def multiply(router: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return arm.gain * output

    def sharpen(linear: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (arm.sharpness * inputs[0],)

    nn.init.constant_(router.linear.bias, math.log(arm.start / (1 - arm.start)))
    router.normalised = router.normalised or arm.is_normalised
    if arm.gain != 1:
        router.register_forward_hook(multiply)
    if arm.sharpness != 1:
        router.linear.register_forward_pre_hook(sharpen)
