"""RegNetX and RegNetY: Detectron2's stem and blocks as nodes of a graph, and the names of their
checkpoints."""

import math
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from detectron2.modeling.backbone.regnet import (
    ResBottleneckBlock,
    SimpleStem,
    generate_regnet_parameters,
    init_weights,
)
from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn

from dgnet_det.errors import check_choice
from dgnet_det.graph.stage import Block, Network
from dgnet_det.modeling.backbone.naming import Blocks, Family, Format, own_format, table


class RegNetParameters(NamedTuple):
    """One network of the RegNet design space, in the notation of "Designing Network Design Spaces",
    §3.3."""

    depth: int
    w_a: float
    w_0: int
    w_m: float
    group_width: int
    # Channels of squeeze-and-excitation per input channel of the block: 0 for RegNetX.
    se_ratio: float
    # Widths are multiples of the group width. Halfway between two, pycls, timm and Detectron2 take
    # the even multiple; torchvision takes the larger one, which makes two wider networks.
    rounds_half_up: bool = False


# The names say the multiply-adds at 224².
REGNETS = {
    "X_400M": RegNetParameters(22, 24.48, 24, 2.54, 16, 0.0),
    "X_400M_TV": RegNetParameters(22, 24.48, 24, 2.54, 16, 0.0, rounds_half_up=True),
    "X_600M": RegNetParameters(16, 36.97, 48, 2.24, 24, 0.0),
    "X_800M": RegNetParameters(16, 35.73, 56, 2.28, 16, 0.0),
    "X_1600M": RegNetParameters(18, 34.01, 80, 2.25, 24, 0.0),
    "X_3200M": RegNetParameters(25, 26.31, 88, 2.25, 48, 0.0),
    "Y_400M": RegNetParameters(16, 27.89, 48, 2.09, 8, 0.25),
    "Y_600M": RegNetParameters(15, 32.54, 48, 2.32, 16, 0.25),
    "Y_800M": RegNetParameters(14, 38.84, 56, 2.4, 16, 0.25),
    "Y_800M_TV": RegNetParameters(14, 38.84, 56, 2.4, 16, 0.25, rounds_half_up=True),
    "Y_1600M": RegNetParameters(27, 20.71, 48, 2.65, 24, 0.25),
    "Y_3200M": RegNetParameters(21, 42.63, 80, 2.66, 24, 0.25),
}
STEM_CHANNELS = 32
RELU = partial(nn.ReLU, inplace=True)


class RegNetNode(ResBottleneckBlock):
    """Detectron2's :class:`ResBottleneckBlock` as a node, without bottleneck as in all of
    :data:`REGNETS`."""

    has_shortcut = True
    activation = staticmethod(F.relu_)  # follows the addition

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        norm: str,
        group_width: int,
        se_ratio: float,
    ) -> None:
        params = {"bot_mul": 1.0, "group_w": group_width, "se_r": se_ratio}
        super().__init__(in_channels, out_channels, stride, norm, RELU, params)
        self.apply(init_weights)

    @property
    def shortcut(self) -> nn.Module | None:
        """The projection of the shortcut, made on the spot so that its parameters keep Detectron2's
        names, ``proj`` and ``bn``."""
        return None if self.proj is None else nn.Sequential(self.proj, self.bn)

    def forward(self, x: Tensor, projected: Tensor | None = None) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉]. ``projected`` is the output of
        the shortcut's projection, if it has been computed already."""
        if not self.has_shortcut:
            return self.f(x)
        if projected is None:
            projected = x if self.proj is None else self.bn(self.proj(x))
        return self.activation(self.f(x).add_(projected))


def regnet(in_channels: int, *, norm: str, shortcuts: bool, name: str) -> Network:
    """Stem and blocks of a RegNet.

    Raises:
        UserError: ``name`` is not in :data:`REGNETS`.
    """
    check_choice("MODEL.DGNET.REGNET", name, REGNETS)
    regnet = REGNETS[name]
    widths, depths, *_ = generate_regnet_parameters(
        regnet.w_a, regnet.w_0, regnet.w_m, regnet.depth
    )
    stem = SimpleStem(in_channels, STEM_CHANNELS, norm, RELU)
    stem.apply(init_weights)
    channels = STEM_CHANNELS
    levels: list[list[list[Block]]] = []
    for width, num_blocks in zip(widths, depths, strict=True):
        group_width = min(regnet.group_width, width)
        groups = width / group_width
        num_groups = math.floor(groups + 0.5) if regnet.rounds_half_up else round(groups)
        blocks = ResNet.make_stage(
            RegNetNode,
            num_blocks,
            in_channels=channels,
            out_channels=num_groups * group_width,
            stride_per_block=[2] + [1] * (num_blocks - 1),
            norm=norm,
            group_width=group_width,
            se_ratio=regnet.se_ratio,
        )
        if not shortcuts:
            for block in blocks:
                block.proj = block.bn = None
                block.has_shortcut = False
        levels.append([blocks])
        channels = num_groups * group_width
    return stem, levels


def _node(stage: int, block: int) -> str:
    return f"res{stage + 1}.0.nodes.{block}"


STEM = table("stem.conv stem.bn", "stem.conv stem.bn")
TORCHVISION = table(
    "proj.0 proj.1 f.a.0 f.a.1  f.b.0 f.b.1  f.c.0 f.c.1  f.se.fc1    f.se.fc2",
    "proj   bn     f.a   f.a_bn f.b   f.b_bn f.c   f.c_bn f.se.f_ex.0 f.se.f_ex.2",
)
TIMM = table(
    "downsample.conv downsample.bn conv1.conv conv1.bn conv2.conv conv2.bn",
    "proj            bn            f.a        f.a_bn   f.b        f.b_bn",
) | table("conv3.conv conv3.bn se.fc1 se.fc2", "f.c f.c_bn f.se.f_ex.0 f.se.f_ex.2")

REGNET = Family(
    "regnet",
    regnet,
    lambda cfg: {"name": cfg.MODEL.DGNET.REGNET},
    keys=(
        "MODEL.DGNET.REGNET, where torchvision's regnet_x_400mf and regnet_y_800mf are X_400M_TV"
        " and Y_800M_TV; MODEL.RESNETS.NORM"
    ),
    formats=(
        own_format("f.a.weight"),
        Format(
            "torchvision",
            r"trunk_output\.block1\.block1-0\.f\.a\.0\.weight",
            stem=table("stem.0 stem.1", "stem.conv stem.bn"),
            blocks=(
                Blocks(
                    r"trunk_output\.block(\d)\.block\d-(\d+)\.",
                    lambda stage, block: _node(stage, block + 1),
                    TORCHVISION,
                ),
            ),
            head={"fc": "head.linear"},
        ),
        Format(
            "timm",
            r"s1\.b1\.conv1\.conv\.weight",
            stem=STEM,
            blocks=(Blocks(r"s(\d)\.b(\d+)\.", _node, TIMM),),
            head={"head.fc": "head.linear"},
        ),
        Format(
            "detectron2/pycls",
            r"s1\.b1\.f\.a\.weight",
            stem=STEM,
            blocks=(Blocks(r"s(\d)\.b(\d+)\.", _node),),
            head={"head.fc": "head.linear", "linear": "head.linear"},
        ),
    ),
)
