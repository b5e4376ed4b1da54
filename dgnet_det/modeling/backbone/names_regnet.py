"""Names of RegNet checkpoints."""

import re

from dgnet_det.modeling.backbone.naming import Family, Format, own_format, substitute

# Inside a block. Detectron2's names are also those of pycls.
TORCHVISION_BLOCK = (
    (r"proj\.0\.", "proj."),
    (r"proj\.1\.", "bn."),
    (r"f\.([abc])\.0\.", r"f.\1."),
    (r"f\.([abc])\.1\.", r"f.\1_bn."),
    (r"f\.se\.fc1\.", "f.se.f_ex.0."),
    (r"f\.se\.fc2\.", "f.se.f_ex.2."),
)
TIMM_BLOCK = (
    (r"downsample\.conv\.", "proj."),
    (r"downsample\.bn\.", "bn."),
    (r"conv1\.conv\.", "f.a."),
    (r"conv1\.bn\.", "f.a_bn."),
    (r"conv2\.conv\.", "f.b."),
    (r"conv2\.bn\.", "f.b_bn."),
    (r"conv3\.conv\.", "f.c."),
    (r"conv3\.bn\.", "f.c_bn."),
    (r"se\.fc1\.", "f.se.f_ex.0."),
    (r"se\.fc2\.", "f.se.f_ex.2."),
)


def _node(stage: str, block: int, inside: str) -> str:
    return f"res{int(stage) + 1}.0.nodes.{block}.{inside}"


def _from_torchvision(name: str) -> str | None:
    if name.startswith("stem."):
        return substitute(name, ((r"stem\.0\.", "stem.conv."), (r"stem\.1\.", "stem.bn.")))
    block = re.match(r"trunk_output\.block(\d)\.block\d-(\d+)\.(.+)", name)
    if block is None:
        return None
    return _node(block[1], int(block[2]) + 1, substitute(block[3], TORCHVISION_BLOCK))


def _from_timm(name: str) -> str | None:
    block = re.match(r"s(\d)\.b(\d+)\.(.+)", name)
    if block is None:
        return name if name.startswith("stem.") else None
    return _node(block[1], int(block[2]), substitute(block[3], TIMM_BLOCK))


def _from_detectron2(name: str) -> str | None:
    block = re.match(r"s(\d)\.b(\d+)\.(.+)", name)
    if block is None:
        return name if name.startswith("stem.") else None
    return _node(block[1], int(block[2]), block[3])


REGNET = Family(
    "regnet",
    (
        own_format("f.a.weight"),
        Format(
            "torchvision",
            r"trunk_output\.block1\.block1-0\.f\.a\.0\.weight",
            _from_torchvision,
            head=((r"fc\.", "head.linear."),),
        ),
        Format(
            "timm",
            r"s1\.b1\.conv1\.conv\.weight",
            _from_timm,
            head=((r"head\.fc\.", "head.linear."),),
        ),
        Format(
            "detectron2/pycls",
            r"s1\.b1\.f\.a\.weight",
            _from_detectron2,
            head=((r"(head\.fc|linear)\.", "head.linear."),),
        ),
    ),
    keys="MODEL.DGNET.REGNET, MODEL.RESNETS.NORM",
)
