"""Pixel order and statistics that go with a source's weights."""

from typing import Any, NamedTuple

from detectron2.config import CfgNode

from dgnet_det.checkpoint.reading import RENAMED_CAFFE2
from dgnet_det.modeling.backbone.matching import Source

IMAGENET_MEAN_RGB = [123.675, 116.28, 103.53]
IMAGENET_STD_RGB = [58.395, 57.12, 57.375]


class Pixels(NamedTuple):
    """Config values that belong to a source's weights, and what is to be known about them."""

    values: dict[str, Any]
    note: str = ""

    def lines(self, cfg: CfgNode) -> list[str]:
        """A line for each key: the value, and the one in ``cfg`` where that is another."""
        lines = []
        for key, value in self.values.items():
            present: Any = cfg
            for part in key.split("."):
                present = present[part]
            differs = "" if present == value else f" (the config has {present})"
            lines.append(f"{key} {value}{differs}")
        return lines


def pixels_of(source: Source, author: str, cfg: CfgNode) -> Pixels | None:
    """What is known of a source's pixels; None where only its own training config knows.

    Args:
        source: of the weights.
        author: ``__author__`` in the file, empty if there is none.
        cfg: the config that the weights are converted for.
    """
    format_ = source.format.name
    stride_in_1x1 = "MODEL.RESNETS.STRIDE_IN_1X1"
    if author == RENAMED_CAFFE2:
        # Detectron2's model zoo: MSRA's own ResNets have the stride in the 1x1 convolution; FAIR's
        # with group norm and FAIR's ResNeXt do not, and the latter divide by a deviation.
        is_resnext = cfg.MODEL.RESNETS.NUM_GROUPS > 1
        return Pixels(
            {
                "INPUT.FORMAT": "BGR",
                "MODEL.PIXEL_MEAN": IMAGENET_MEAN_RGB[::-1],
                "MODEL.PIXEL_STD": IMAGENET_STD_RGB[::-1] if is_resnext else [1.0, 1.0, 1.0],
                stride_in_1x1: not is_resnext and cfg.MODEL.RESNETS.NORM != "GN",
            }
        )
    if format_.startswith("detectron2") and author != "torchvision":
        return None
    values: dict[str, Any] = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": IMAGENET_MEAN_RGB,
        "MODEL.PIXEL_STD": IMAGENET_STD_RGB,
    }
    if source.family.name == "resnet":
        values[stride_in_1x1] = False
    if format_ == "dgnet_det":
        return Pixels(values, "unless the config that it was trained with says otherwise")
    if "timm" in format_:
        return Pixels(values, "for timm's, unless the model card says otherwise")
    return Pixels(values)
