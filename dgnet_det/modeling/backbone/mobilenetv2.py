"""MobileNetV2-1.0: torchvision's inverted residuals as nodes of a graph, and the names of their
checkpoints."""

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from dgnet_det.graph.stage import Block, Network
from dgnet_det.modeling.backbone.naming import Blocks, Family, Format, own_format, table

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
    """torchvision's :class:`InvertedResidual` as a node. Its shortcut is the identity where it
    keeps the shape, else absent, as in all nodes of the paper wiring; it ends linear."""

    shortcut = None
    freeze = CNNBlockBase.freeze

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, expansion: int, norm: str
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            stride,
            expansion,
            norm_layer=lambda c: get_norm(norm, c) or nn.Identity(),
        )
        self.in_channels = in_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def activation(self, x: Tensor) -> Tensor:
        """Nothing follows the addition."""
        return x


def mobilenetv2(in_channels: int, *, norm: str, shortcuts: bool) -> Network:
    """Stem and blocks of MobileNetV2-1.0. Its shortcuts have no parameters."""
    stem = MobileNetV2Stem(in_channels, STEM_CHANNELS, norm)
    channels = STEM_CHANNELS
    levels: list[list[list[Block]]] = []
    for rows in STAGES:
        levels.append([])
        for expansion, out_channels, num_blocks, stride in rows:
            blocks = ResNet.make_stage(
                InvertedResidualNode,
                num_blocks,
                in_channels=channels,
                out_channels=out_channels,
                stride_per_block=[stride] + [1] * (num_blocks - 1),
                expansion=expansion,
                norm=norm,
            )
            for block in blocks:
                block.use_res_connect = block.use_res_connect and shortcuts
            levels[-1].append(blocks)
            channels = out_channels
    return stem, levels


# torchvision numbers all blocks in a row, timm the rows of the table, which are our stages.
ROWS = [f"res{k}.{i}.nodes" for k, rows in enumerate(STAGES, 2) for i in range(len(rows))]
NUM_BLOCKS = [num_blocks for rows in STAGES for _, _, num_blocks, _ in rows]
NODES = [f"{row}.{j}" for row, n in zip(ROWS, NUM_BLOCKS, strict=True) for j in range(1, n + 1)]


def _timm_node(row: int, block: int) -> str:
    return f"{ROWS[row]}.{block + 1}"


MOBILENETV2 = Family(
    "mobilenetv2",
    mobilenetv2,
    lambda cfg: {},
    keys="MODEL.RESNETS.NORM",
    formats=(
        own_format("conv.0.0.weight"),
        # The last 1x1 convolution counts to the head.
        Format(
            "torchvision",
            r"features\.1\.conv\.0\.0\.weight",
            stem=table("features.0.0 features.0.1", "stem.conv1   stem.conv1.norm"),
            blocks=(Blocks(r"features\.([1-9]|1[0-7])\.", lambda i: NODES[i - 1]),),
            head=table(
                "features.18.0 features.18.1   classifier.1",
                "head.conv     head.conv.norm  head.linear",
            ),
        ),
        Format(
            "timm",
            r"blocks\.1\.0\.conv_pwl\.weight",
            stem=table("conv_stem bn1", "stem.conv1 stem.conv1.norm"),
            blocks=(
                Blocks(
                    r"blocks\.(0)\.(\d+)\.",  # the row without expansion
                    _timm_node,
                    table(
                        "conv_dw  bn1      conv_pw bn2",
                        "conv.0.0 conv.0.1 conv.1  conv.2",
                    ),
                ),
                Blocks(
                    r"blocks\.([1-6])\.(\d+)\.",
                    _timm_node,
                    table(
                        "conv_pw  bn1      conv_dw  bn2      conv_pwl bn3",
                        "conv.0.0 conv.0.1 conv.1.0 conv.1.1 conv.2   conv.3",
                    ),
                ),
            ),
            head=table(
                "conv_head bn2            classifier",
                "head.conv head.conv.norm head.linear",
            ),
            unsupported={r"blocks\.\d\.\d+\.se\.": "squeeze-and-excitation (EfficientNet)"},
        ),
    ),
)
