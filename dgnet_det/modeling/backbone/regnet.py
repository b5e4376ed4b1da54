"""RegNetX and RegNetY: Detectron2's stem and blocks as nodes of a graph."""

from typing import NamedTuple

from detectron2.modeling.backbone.regnet import (
    ResBottleneckBlock,
    SimpleStem,
    adjust_block_compatibility,
    generate_regnet_parameters,
    init_weights,
)
from torch import Tensor, nn

from dgnet_det.errors import UserError
from dgnet_det.graph.stage import Block, Network


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


# The names say the multiply-adds at 224².
REGNETS = {
    "X_400M": RegNetParameters(22, 24.48, 24, 2.54, 16, 0.0),
    "X_600M": RegNetParameters(16, 36.97, 48, 2.24, 24, 0.0),
    "X_800M": RegNetParameters(16, 35.73, 56, 2.28, 16, 0.0),
    "X_1600M": RegNetParameters(18, 34.01, 80, 2.25, 24, 0.0),
    "X_3200M": RegNetParameters(25, 26.31, 88, 2.25, 48, 0.0),
    "Y_400M": RegNetParameters(16, 27.89, 48, 2.09, 8, 0.25),
    "Y_600M": RegNetParameters(15, 32.54, 48, 2.32, 16, 0.25),
    "Y_800M": RegNetParameters(14, 38.84, 56, 2.4, 16, 0.25),
    "Y_1600M": RegNetParameters(27, 20.71, 48, 2.65, 24, 0.25),
    "Y_3200M": RegNetParameters(21, 42.63, 80, 2.66, 24, 0.25),
}
STEM_CHANNELS = 32


class RegNetNode(ResBottleneckBlock):
    """Detectron2's :class:`ResBottleneckBlock` as a node."""

    @property
    def shortcut(self) -> nn.Module | None:
        """The projection of the shortcut, made on the spot so that its parameters keep Detectron2's
        names, ``proj`` and ``bn``."""
        return None if self.proj is None else nn.Sequential(self.proj, self.bn)

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch, [B, C_in, H, W] → [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉]."""
        return self.f(x)

    def activation(self, x: Tensor) -> Tensor:
        """What follows the addition, in place."""
        return self.af(x)


def regnet(in_channels: int, *, norm: str, shortcuts: bool, name: str) -> Network:
    """Stem and blocks of a RegNet.

    Args:
        in_channels: channels of the image.
        norm: as for :func:`detectron2.layers.get_norm`.
        shortcuts: whether the blocks have their own shortcuts, as in the static network.
        name: in :data:`REGNETS`.

    Raises:
        UserError: a name that is not there.
    """
    if name not in REGNETS:
        raise UserError(f"MODEL.DGNET.REGNET {name!r}: choose from {', '.join(REGNETS)}")
    depth, w_a, w_0, w_m, group_width, se_ratio = REGNETS[name]
    widths, depths = generate_regnet_parameters(w_a, w_0, w_m, depth)[:2]
    num_stages = len(widths)
    widths, _, group_widths = adjust_block_compatibility(
        widths, [1.0] * num_stages, [group_width] * num_stages
    )

    def relu() -> nn.Module:
        return nn.ReLU(inplace=True)

    stem = SimpleStem(in_channels, STEM_CHANNELS, norm, relu)
    stem.apply(init_weights)
    channels = STEM_CHANNELS
    stages: list[list[list[Block]]] = []
    for out_channels, num_blocks, group in zip(widths, depths, group_widths, strict=True):
        params = {"bot_mul": 1.0, "group_w": group, "se_r": se_ratio}
        blocks: list[Block] = []
        for i in range(num_blocks):
            stride = 2 if i == 0 else 1
            block = RegNetNode(channels, out_channels, stride, norm, relu, params)
            block.apply(init_weights)
            if not shortcuts:
                block.proj = block.bn = None
            blocks.append(block)
            channels = out_channels
        stages.append([blocks])
    return stem, stages
