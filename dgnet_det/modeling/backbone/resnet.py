"""ResNet and ResNeXt: Detectron2's stem and blocks as nodes of a graph, and the names of their
checkpoints."""

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import Tensor

from dgnet_det.errors import UserError, check_choice
from dgnet_det.graph.stage import Block, Network
from dgnet_det.modeling.backbone.naming import Blocks, Family, Format, own_format, table

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class BasicNode(BasicBlock):
    """Detectron2's :class:`BasicBlock` as a node: with a shortcut or, in the paper wiring, its
    residual branch alone."""

    has_shortcut = True
    activation = staticmethod(F.relu_)  # follows the addition

    def forward(self, x: Tensor, projected: Tensor | None = None) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉]. ``projected`` is the output of
        the shortcut's projection, if it has been computed already."""
        return _add_shortcut(self, self.conv2(F.relu_(self.conv1(x))), x, projected)


class BottleneckNode(BottleneckBlock):
    """Detectron2's :class:`BottleneckBlock` as a node: with a shortcut or, in the paper wiring, its
    residual branch alone."""

    has_shortcut = True
    activation = staticmethod(F.relu_)  # follows the addition

    def forward(self, x: Tensor, projected: Tensor | None = None) -> Tensor:
        """As :meth:`BasicNode.forward`."""
        branch = self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))
        return _add_shortcut(self, branch, x, projected)


def _add_shortcut(
    block: BasicNode | BottleneckNode, branch: Tensor, x: Tensor, projected: Tensor | None
) -> Tensor:
    if not block.has_shortcut:
        return branch
    if projected is None:
        projected = x if block.shortcut is None else block.shortcut(x)
    return block.activation(branch.add_(projected))


class ConvStem(BasicStem):
    """Detectron2's :class:`BasicStem` without its max-pool: in the paper wiring stage 1 has the
    stride instead."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, norm)
        self.stride = 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, C, ⌈H / 2⌉, ⌈W / 2⌉]."""
        return F.relu_(self.conv1(x))


def resnet_arguments(cfg: CfgNode) -> dict[str, Any]:
    """What :func:`resnet` takes, as ``MODEL.RESNETS`` has it.

    Raises:
        UserError: deformable blocks.
    """
    resnets = cfg.MODEL.RESNETS
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise UserError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable blocks are not supported")
    return {
        "depth": resnets.DEPTH,
        "stem_out_channels": resnets.STEM_OUT_CHANNELS,
        "res2_out_channels": resnets.RES2_OUT_CHANNELS,
        "num_groups": resnets.NUM_GROUPS,
        "width_per_group": resnets.WIDTH_PER_GROUP,
        "stride_in_1x1": resnets.STRIDE_IN_1X1,
        "res5_dilation": resnets.RES5_DILATION,
    }


def resnet(
    in_channels: int,
    *,
    norm: str,
    shortcuts: bool,
    depth: int,
    stem_out_channels: int = 64,
    res2_out_channels: int | None = None,
    num_groups: int = 1,
    width_per_group: int = 64,
    stride_in_1x1: bool = False,
    res5_dilation: int = 1,
) -> Network:
    """Stem and blocks of a ResNet or ResNeXt. Without shortcuts, the stem has no max-pool either.
    The arguments are keys of ``MODEL.RESNETS``; by default, res2 is as wide as the stem below depth
    50, and 4 times as wide from there on.

    Raises:
        UserError: a value that is not supported, with the key's name.
    """
    check_choice("MODEL.RESNETS.DEPTH", depth, BLOCKS_PER_STAGE)
    check_choice("MODEL.RESNETS.RES5_DILATION", res5_dilation, (1, 2))
    basic = depth < 50
    channels = stem_out_channels
    out_channels = res2_out_channels or channels * (1 if basic else 4)
    if basic:
        for key, value, only in (
            ("NUM_GROUPS", num_groups, 1),
            ("RES5_DILATION", res5_dilation, 1),
            ("RES2_OUT_CHANNELS", out_channels, channels),  # the stem's
        ):
            if value != only:
                raise UserError(f"MODEL.RESNETS.{key} {value}: depth {depth} takes {only} only")

    stem = (BasicStem if shortcuts else ConvStem)(in_channels, channels, norm)
    bottleneck_channels = num_groups * width_per_group
    levels: list[list[list[Block]]] = []
    for index, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
        dilation = res5_dilation if index == 3 else 1
        stride = 1 if (index == 0 and shortcuts) or dilation == 2 else 2
        bottleneck = {
            "bottleneck_channels": bottleneck_channels,
            "num_groups": num_groups,
            "stride_in_1x1": stride_in_1x1,
            "dilation": dilation,
        }
        blocks = ResNet.make_stage(
            BasicNode if basic else BottleneckNode,
            num_blocks,
            in_channels=channels,
            out_channels=out_channels,
            stride_per_block=[stride] + [1] * (num_blocks - 1),
            norm=norm,
            **({} if basic else bottleneck),
        )
        if not shortcuts:
            for block in blocks:
                block.shortcut, block.has_shortcut = None, False
        levels.append([blocks])
        channels = out_channels
        out_channels *= 2
        bottleneck_channels *= 2
    return stem, levels


RESNET = Family(
    "resnet",
    resnet,
    resnet_arguments,
    keys="MODEL.RESNETS.DEPTH, NUM_GROUPS, WIDTH_PER_GROUP, RES2_OUT_CHANNELS, NORM",
    formats=(
        own_format("conv1.weight"),
        Format(
            "torchvision/timm",
            r"layer1\.0\.conv1\.weight",
            stem=table("conv1 bn1", "stem.conv1 stem.conv1.norm"),
            blocks=(
                Blocks(
                    r"layer(\d)\.(\d+)\.",
                    lambda k, j: f"res{k + 1}.0.nodes.{j + 1}",
                    table(
                        "bn1        bn2        bn3        downsample.0 downsample.1",
                        "conv1.norm conv2.norm conv3.norm shortcut     shortcut.norm",
                    ),
                ),
            ),
            head={"fc": "head.linear"},
            unsupported={
                r"conv1\.\d": "a stem of several convolutions (ResNet-C, -D, -S, -T)",
                r"layer\d\.0\.downsample\.2\.": "average pooling in the shortcuts (ResNet-D)",
                r"layer\d\.\d+\.se\.": "squeeze-and-excitation",
            },
        ),
        Format(
            "detectron2",
            r"res2\.0\.conv1\.weight",
            stem={"stem.conv1": "stem.conv1"},
            blocks=(Blocks(r"res(\d)\.(\d+)\.", lambda k, j: f"res{k}.0.nodes.{j + 1}"),),
            # torchvision's as Detectron2 converts them, Detectron2's own, Caffe2's.
            head=dict.fromkeys(("stem.fc", "linear", "fc1000", "pred"), "head.linear"),
            unsupported={
                r"stem\.conv1_\d": "a stem of several convolutions (DeepLab)",
                r"res\d\.\d+\.conv2_offset\.": "deformable convolutions",
            },
        ),
    ),
)
