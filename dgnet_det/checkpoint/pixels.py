"""Pixel order and statistics that go with a source's weights."""

from typing import Any, NamedTuple

from detectron2.config import CfgNode

from dgnet_det.checkpoint.reading import RENAMED_CAFFE2
from dgnet_det.modeling.backbone.matching import Match

IMAGENET_MEAN_RGB = [123.675, 116.28, 103.53]
IMAGENET_STD_RGB = [58.395, 57.12, 57.375]


class Pixels(NamedTuple):
    """Config values that belong to a source's weights, and what is to be known about them."""

    values: dict[str, Any]
    note: str = ""

    def yaml(self) -> str:
        """The lines to paste into a config file."""
        return "\n".join(["INPUT:", *self._lines("INPUT."), "MODEL:", *self._lines("MODEL.")])

    def differences(self, cfg: CfgNode) -> list[str]:
        """A line for every value that is another in ``cfg``."""
        return [
            f"{key} is {_get(cfg, key)} in the config, {value} goes with these weights"
            for key, value in self.values.items()
            if _get(cfg, key) != value
        ]

    def _lines(self, section: str) -> list[str]:
        lines = []
        for key, value in self.values.items():
            if key.startswith(section):
                *parents, leaf = key.split(".")[1:]
                lines += [f"  {parent}:" for parent in parents]
                lines.append("  " * (len(parents) + 1) + f"{leaf}: {_scalar(value)}")
        return lines


def pixels_of(match: Match, author: str, cfg: CfgNode) -> Pixels | None:
    """What is known of a source's pixels; None where only its own training config knows.

    Args:
        match: of the source.
        author: ``__author__`` in the file, empty if there is none.
        cfg: the config that the weights are converted for.
    """
    format_ = match.source.format.name
    stride_in_1x1 = "MODEL.RESNETS.STRIDE_IN_1X1"
    is_resnet = match.source.family.name == "resnet"
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
    if is_resnet:
        values[stride_in_1x1] = False
    if format_ == "dgnet_det":
        return Pixels(values, "unless the config that it was trained with says otherwise")
    if "timm" in format_:
        return Pixels(values, "for timm's, unless the model card says otherwise")
    return Pixels(values)


def _get(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _scalar(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
