"""Pixel order and statistics that go with a source's weights."""

from typing import Any

from detectron2.config import CfgNode

from dgnet_det.checkpoint.reading import RENAMED_CAFFE2
from dgnet_det.modeling.backbone.matching import Source

IMAGENET_MEAN_RGB = [123.675, 116.28, 103.53]
IMAGENET_STD_RGB = [58.395, 57.12, 57.375]


def pixels_of(source: Source, author: str, cfg: CfgNode) -> dict[str, Any] | None:
    """The config values that belong to a source's weights, by key; None where only its own training
    config knows.

    Args:
        source: of the weights.
        author: ``__author__`` in the file, empty if there is none.
        cfg: the config that the weights are converted for.
    """
    stride_in_1x1 = "MODEL.RESNETS.STRIDE_IN_1X1"
    if author == RENAMED_CAFFE2:
        # Detectron2's model zoo: MSRA's own ResNets have the stride in the 1x1 convolution; FAIR's
        # with group norm and FAIR's ResNeXt do not, and the latter divide by a deviation.
        is_resnext = cfg.MODEL.RESNETS.NUM_GROUPS > 1
        return {
            "INPUT.FORMAT": "BGR",
            "MODEL.PIXEL_MEAN": IMAGENET_MEAN_RGB[::-1],
            "MODEL.PIXEL_STD": IMAGENET_STD_RGB[::-1] if is_resnext else [1.0, 1.0, 1.0],
            stride_in_1x1: not is_resnext and cfg.MODEL.RESNETS.NORM != "GN",
        }
    if source.format.name.startswith("detectron2") and author != "torchvision":
        return None
    values: dict[str, Any] = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": IMAGENET_MEAN_RGB,
        "MODEL.PIXEL_STD": IMAGENET_STD_RGB,
    }
    return values | ({stride_in_1x1: False} if source.family.name == "resnet" else {})
