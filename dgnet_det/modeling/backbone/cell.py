"""A small network of cells, for training from nothing: every connection but the first of a stage
has the branches of :data:`.branches.CELL` to choose from."""

from collections.abc import Sequence

from dgnet_det.drnet.branches import Cell, SeparableConv
from dgnet_det.graph.stage import Block, Network
from dgnet_det.modeling.backbone.mobilenetv2 import MobileNetV2Stem
from dgnet_det.modeling.backbone.naming import Family, own_format

STEM_CHANNELS = 32
STAGES = ((32, 3), (64, 4), (128, 5), (256, 4))  # channels, blocks


def cell_network(
    in_channels: int, *, norm: str, shortcuts: bool, branches: Sequence[str]
) -> Network:
    """Stem and blocks, with ``branches`` out of :data:`.branches.CELL`. Cells have no shortcuts."""
    stem = MobileNetV2Stem(in_channels, STEM_CHANNELS, norm)
    channels = STEM_CHANNELS
    levels: list[list[list[Block]]] = []
    for out_channels, num_blocks in STAGES:
        blocks = [SeparableConv(channels, out_channels, norm=norm, stride=2)]
        cells = [Cell(out_channels, branches=branches, norm=norm) for _ in range(num_blocks - 1)]
        levels.append([[*blocks, *cells]])  # type: ignore[list-item]
        channels = out_channels
    return stem, levels


CELL_NETWORK = Family(
    "cell",
    cell_network,
    lambda cfg: {},  # :func:`.drnet.make_drnet` hands the branches over
    keys="MODEL.DRNET.BRANCHES, MODEL.RESNETS.NORM",
    formats=(own_format("depthwise.weight"),),
)
