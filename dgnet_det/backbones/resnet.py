"""ResNet and ResNeXt: Detectron2's stem and blocks as nodes of a graph."""

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor

from ..errors import UserError
from ..graph import Block

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class BasicNode(BasicBlock):
    """Detectron2's :class:`BasicBlock` as a node."""

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch, [B, C_in, H, W] → [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉]."""
        return self.conv2(F.relu_(self.conv1(x)))

    def activation(self, x: Tensor) -> Tensor:
        """What follows the addition, in place."""
        return F.relu_(x)


class BottleneckNode(BottleneckBlock):
    """Detectron2's :class:`BottleneckBlock` as a node."""

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch, [B, C_in, H, W] → [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉]."""
        return self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))

    def activation(self, x: Tensor) -> Tensor:
        """What follows the addition, in place."""
        return F.relu_(x)


class ConvStem(BasicStem):
    """Detectron2's :class:`BasicStem` without its max-pool: in the paper wiring stage 1 has the
    stride instead."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, norm)
        self.stride = 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, C, ⌈H / 2⌉, ⌈W / 2⌉]."""
        return F.relu_(self.conv1(x))


def resnet_from_config(
    cfg: CfgNode, in_channels: int, *, shortcuts: bool
) -> tuple[CNNBlockBase, list[list[list[Block]]]]:
    """Stem and blocks of the ResNet or ResNeXt that ``MODEL.RESNETS`` describes.

    Args:
        cfg: the config.
        in_channels: channels of the image.
        shortcuts: whether the blocks have their own shortcuts and the stem its max-pool, as in the
            static network.

    Raises:
        UserError: a value that is not supported, with the key's name.
    """
    resnets = cfg.MODEL.RESNETS
    depth, norm = resnets.DEPTH, resnets.NORM
    if depth not in BLOCKS_PER_STAGE:
        raise UserError(f"MODEL.RESNETS.DEPTH {depth}: choose from {list(BLOCKS_PER_STAGE)}")
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise UserError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable blocks are not supported")
    if resnets.RES5_DILATION not in (1, 2):
        raise UserError(f"MODEL.RESNETS.RES5_DILATION {resnets.RES5_DILATION}: choose 1 or 2")
    basic = depth < 50
    channels, out_channels = resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    if basic:
        for key, only in (("NUM_GROUPS", 1), ("RES5_DILATION", 1)):
            if resnets[key] != only:
                raise UserError(
                    f"MODEL.RESNETS.{key} {resnets[key]}: depth {depth} takes {only} only"
                )
        if out_channels != channels:
            raise UserError(
                f"MODEL.RESNETS.RES2_OUT_CHANNELS {out_channels}: depth {depth} takes the value of"
                f" STEM_OUT_CHANNELS, {channels}"
            )

    stem = (BasicStem if shortcuts else ConvStem)(in_channels, channels, norm)
    bottleneck_channels = resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP
    stages: list[list[list[Block]]] = []
    for index, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
        dilation = resnets.RES5_DILATION if index == 3 else 1
        stage_stride = 1 if (index == 0 and shortcuts) or dilation == 2 else 2
        blocks: list[Block] = []
        for i in range(num_blocks):
            stride = stage_stride if i == 0 else 1
            if basic:
                block = BasicNode(channels, out_channels, stride=stride, norm=norm)
            else:
                block = BottleneckNode(
                    channels,
                    out_channels,
                    bottleneck_channels=bottleneck_channels,
                    stride=stride,
                    num_groups=resnets.NUM_GROUPS,
                    norm=norm,
                    stride_in_1x1=resnets.STRIDE_IN_1X1,
                    dilation=dilation,
                )
            if not shortcuts:
                block.shortcut = None
            blocks.append(block)
            channels = out_channels
        stages.append([blocks])
        out_channels *= 2
        bottleneck_channels *= 2
    return stem, stages
