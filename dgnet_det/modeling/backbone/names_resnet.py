"""Names of ResNet and ResNeXt checkpoints."""

import re

from dgnet_det.modeling.backbone.naming import Family, Format, own_format, substitute

# torchvision's and timm's, inside the stem and inside a block.
TORCHVISION_MODULES = (
    (r"bn(\d)\.", r"conv\1.norm."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
)


def _from_torchvision(name: str) -> str | None:
    if re.match(r"(conv|bn)1\.", name):
        return "stem." + substitute(name, TORCHVISION_MODULES)
    block = re.match(r"layer(\d)\.(\d+)\.(.+)", name)
    if block is None:
        return None
    inside = substitute(block[3], TORCHVISION_MODULES)
    return f"res{int(block[1]) + 1}.0.nodes.{int(block[2]) + 1}.{inside}"


def _from_detectron2(name: str) -> str | None:
    if re.match(r"stem\.(?!fc\.)", name):
        return name
    block = re.match(r"res(\d)\.(\d+)\.(.+)", name)
    if block is None:
        return None
    return f"res{block[1]}.0.nodes.{int(block[2]) + 1}.{block[3]}"


RESNET = Family(
    "resnet",
    (
        own_format("conv1.weight"),
        Format(
            "torchvision/timm",
            r"layer1\.0\.conv1\.weight",
            _from_torchvision,
            head=((r"fc\.", "head.linear."),),
            unsupported=(
                (r"conv1\.\d", "a stem of several convolutions (ResNet-C, -D, -S, -T)"),
                (r"layer\d\.0\.downsample\.2\.", "average pooling in the shortcuts (ResNet-D)"),
                (r"layer\d\.\d+\.se\.", "squeeze-and-excitation"),
            ),
        ),
        Format(
            "detectron2",
            r"res2\.0\.conv1\.weight",
            _from_detectron2,
            # torchvision's as Detectron2 converts them, Detectron2's own, Caffe2's.
            head=((r"(stem\.fc|linear|fc1000|pred)\.", "head.linear."),),
            unsupported=(
                (r"stem\.conv1_\d", "a stem of several convolutions (DeepLab)"),
                (r"res\d\.\d+\.conv2_offset\.", "deformable convolutions"),
            ),
        ),
    ),
    keys="MODEL.RESNETS.DEPTH, NUM_GROUPS, WIDTH_PER_GROUP, RES2_OUT_CHANNELS, NORM",
)
