"""The networks that are compared: a narrow ResNet-18 in several wirings."""

from typing import NamedTuple

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.graph.wirings import PaperGraph, ResidualGraph
from dgnet_det.modeling.backbone import dgnet
from dgnet_det.modeling.classifier import ClassifierHead, DGNetClassifier

WIDTH = 16


class Arm(NamedTuple):
    """A network, and how its routers learn."""

    name: str  # on the page
    wiring: str
    edge_weights: str
    start: float = 0.0  # of α; 0: the package's
    router_lr: float = 1.0  # as a multiple of the other parameters'
    gain: float = 1.0  # of what routers return, also at the start: α = gain · σ
    sharpness: float = 1.0  # 1 / T in σ(W · GAP(x) / T + b)
    normalised: bool | None = None  # whether routers read a normalised average; None: the package's


ARMS = {
    "plain": Arm("plain", "residual", "none"),
    "se": Arm("plain with squeeze-and-excitation", "residual", "none"),
    "structure": Arm("paper, α ≡ 1", "paper", "static"),
    "static": Arm("paper, static", "paper", "static"),
    "dynamic": Arm("paper, dynamic", "paper", "dynamic"),
    "residual-static": Arm("residual, static", "residual", "static"),
    "residual-dynamic": Arm("residual, dynamic", "residual", "dynamic"),
}
for _start in (0.5, 0.73, 0.88, 0.98):
    ARMS[f"start-{_start}"] = Arm(f"paper, dynamic, α starts at {_start}", "paper", "dynamic", _start)
for _factor in (3, 10):
    ARMS[f"lr-{_factor}"] = Arm(f"paper, dynamic, routers learn {_factor} times as fast", "paper", "dynamic", router_lr=_factor)
ARMS["doubled"] = Arm("paper, dynamic, α = 2σ", "paper", "dynamic", 0.5, gain=2.0)
ARMS["sharp-4"] = Arm("paper, dynamic, temperature 1/4", "paper", "dynamic", sharpness=4.0)
ARMS["sharp-0.25"] = Arm("paper, dynamic, temperature 4", "paper", "dynamic", sharpness=0.25)
ARMS["normalised"] = Arm("paper, dynamic, normalised averages", "paper", "dynamic", normalised=True)


def build(key: str, num_classes: int, start: float) -> DGNetClassifier:
    """The classifier of an arm, for grey images."""
    arm = ARMS[key]
    base = {"paper": PaperGraph, "residual": ResidualGraph}[arm.wiring]

    class Graph(base):  # type: ignore[valid-type, misc]
        router_start = arm.start or start
        normalised_routers = base.normalised_routers if arm.normalised is None else arm.normalised

    dgnet.WIRINGS["study"] = Graph
    try:
        backbone = dgnet.make_dgnet(
            "resnet", wiring=arm.wiring if arm.edge_weights == "none" else "study", norm="BN", out_features=["res5"],
            edge_weights=arm.edge_weights, in_channels=1, depth=18,
            stem_out_channels=WIDTH, res2_out_channels=WIDTH,
        )  # fmt: skip
    finally:
        del dgnet.WIRINGS["study"]
    for stage in backbone.stages().values():
        if key == "se":
            for block in stage.nodes.values():
                excitation = SqueezeExcitation(block.out_channels, block.out_channels // 4)
                block.conv2 = nn.Sequential(block.conv2, excitation)
        if isinstance(stage, DynamicGraph):
            _change_routers(stage, key, arm)
    head = ClassifierHead(backbone.output_shape()["res5"].channels, num_classes)
    return DGNetClassifier(backbone, head, pixel_mean=[90.0], pixel_std=[90.0])


def _change_routers(stage: DynamicGraph, key: str, arm: Arm) -> None:
    if key == "structure":
        for bias in stage.routers.parameters():
            nn.init.constant_(bias, 40.0)  # whose sigmoid is 1 in float32
        stage.routers.requires_grad_(False)
        stage.thresholds.requires_grad_(False)

    def multiply(router: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return arm.gain * output

    def sharpen(linear: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (arm.sharpness * inputs[0],)

    for router in stage.routers.values():
        if arm.gain != 1:
            router.register_forward_hook(multiply)
        if arm.sharpness != 1:
            router.linear.register_forward_pre_hook(sharpen)
