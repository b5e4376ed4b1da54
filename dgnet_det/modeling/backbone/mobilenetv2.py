"""MobileNetV2-1.0: torchvision's inverted residuals as nodes of a graph."""

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from dgnet_det.graph.stage import Block, Network

# Table 2 of the MobileNetV2 paper: expansion, channels, blocks, stride. Each row is one graph; each
# inner list is one feature level, so that res2..res5 have strides 4, 8, 16, 32.
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 2)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
STEM_CHANNELS = 32


class MobileNetV2Stem(CNNBlockBase):
    """3×3 convolution of stride 2, norm, ReLU6."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, 2)
        self.conv1 = Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            stride=2,
            padding=1,
            bias=False,
            norm=get_norm(norm, out_channels),
            activation=F.relu6,
        )
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, C, ⌈H / 2⌉, ⌈W / 2⌉]."""
        return self.conv1(x)


class InvertedResidualNode(InvertedResidual):
    """torchvision's :class:`InvertedResidual` as a node. Its shortcut is the identity or absent,
    and it ends linear."""

    shortcut = None
    freeze = CNNBlockBase.freeze

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, expansion: int, norm: str
    ) -> None:
        super().__init__(
            in_channels, out_channels, stride, expansion, norm_layer=lambda c: get_norm(norm, c)
        )
        self.in_channels = in_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch, [B, C_in, H, W] → [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉]."""
        return self.conv(x)

    def activation(self, x: Tensor) -> Tensor:
        """Nothing follows the addition."""
        return x


def mobilenetv2(in_channels: int, *, norm: str, shortcuts: bool) -> Network:
    """Stem and blocks of MobileNetV2-1.0.

    Args:
        in_channels: channels of the image.
        norm: as for :func:`detectron2.layers.get_norm`.
        shortcuts: accepted for the families' common signature: a node's :meth:`branch` never adds
            the shortcut.
    """
    stem = MobileNetV2Stem(in_channels, STEM_CHANNELS, norm)
    channels = STEM_CHANNELS
    stages: list[list[list[Block]]] = []
    for rows in STAGES:
        graphs: list[list[Block]] = []
        for expansion, out_channels, num_blocks, stage_stride in rows:
            blocks: list[Block] = []
            for i in range(num_blocks):
                stride = stage_stride if i == 0 else 1
                blocks.append(
                    InvertedResidualNode(
                        channels, out_channels, stride=stride, expansion=expansion, norm=norm
                    )
                )
                channels = out_channels
            graphs.append(blocks)
        stages.append(graphs)
    return stem, stages
