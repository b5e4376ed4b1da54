"""Names of MobileNetV2 checkpoints."""

import re

from dgnet_det.modeling.backbone.mobilenetv2 import STAGES
from dgnet_det.modeling.backbone.naming import Family, Format, own_format, substitute

# torchvision numbers all blocks in a row, timm the rows of the paper's Table 2, which are our
# graphs.
GRAPHS = [f"res{k}.{g}" for k, rows in enumerate(STAGES, 2) for g in range(len(rows))]
NODES = [
    f"{graph}.nodes.{j}"
    for graph, (_, _, num_blocks, _) in zip(
        GRAPHS, (row for rows in STAGES for row in rows), strict=True
    )
    for j in range(1, num_blocks + 1)
]
# timm's, inside a block with and without expansion.
TIMM_EXPANDING = (
    (r"conv_pw\.", "conv.0.0."),
    (r"bn1\.", "conv.0.1."),
    (r"conv_dw\.", "conv.1.0."),
    (r"bn2\.", "conv.1.1."),
    (r"conv_pwl\.", "conv.2."),
    (r"bn3\.", "conv.3."),
)
TIMM_PLAIN = (
    (r"conv_dw\.", "conv.0.0."),
    (r"bn1\.", "conv.0.1."),
    (r"conv_pw\.", "conv.1."),
    (r"bn2\.", "conv.2."),
)


def _from_torchvision(name: str) -> str | None:
    block = re.match(r"features\.(\d+)\.(.+)", name)
    if block is None:
        return None
    index = int(block[1])
    if index == 0:
        return "stem." + substitute(block[2], ((r"0\.", "conv1."), (r"1\.", "conv1.norm.")))
    return f"{NODES[index - 1]}.{block[2]}" if index <= len(NODES) else None


def _from_timm(name: str) -> str | None:
    if re.match(r"(conv_stem|bn1)\.", name):
        rules = ((r"conv_stem\.", "conv1."), (r"bn1\.", "conv1.norm."))
        return "stem." + substitute(name, rules)
    block = re.match(r"blocks\.([0-6])\.(\d+)\.(.+)", name)
    if block is None:
        return None
    inside = substitute(block[3], TIMM_PLAIN if block[1] == "0" else TIMM_EXPANDING)
    return f"{GRAPHS[int(block[1])]}.nodes.{int(block[2]) + 1}.{inside}"


MOBILENETV2 = Family(
    "mobilenetv2",
    (
        own_format("conv.0.0.weight"),
        # The last 1x1 convolution counts to the head.
        Format(
            "torchvision",
            r"features\.1\.conv\.0\.0\.weight",
            _from_torchvision,
            head=(
                (r"features\.18\.0\.", "head.conv."),
                (r"features\.18\.1\.", "head.conv.norm."),
                (r"classifier\.1\.", "head.linear."),
            ),
        ),
        Format(
            "timm",
            r"blocks\.1\.0\.conv_pwl\.weight",
            _from_timm,
            head=(
                (r"conv_head\.", "head.conv."),
                (r"bn2\.", "head.conv.norm."),
                (r"classifier\.", "head.linear."),
            ),
            unsupported=((r"blocks\.\d\.\d+\.se\.", "squeeze-and-excitation (EfficientNet)"),),
        ),
    ),
    keys="MODEL.RESNETS.NORM",
)
