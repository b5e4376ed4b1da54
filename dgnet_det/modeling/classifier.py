"""The classifier: the detector's backbone under a linear head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn

from dgnet_det.config import is_routed
from dgnet_det.errors import UserError
from dgnet_det.modeling.backbone import build_dgnet_backbone, build_drnet_backbone
from dgnet_det.modeling.backbone.base import StagedBackbone

MOBILENETV2_HEAD_CHANNELS = 1280


class ClassifierHead(nn.Module):
    """Global average pooling, dropout, linear; in MobileNetV2 a 1×1 convolution, norm and ReLU6
    first."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        hidden_channels: int | None = None,
        norm: str = "BN",
        dropout: float = 0.0,
    ) -> None:
        """``hidden_channels`` and ``norm`` are those of MobileNetV2's convolution, None for none;
        ``dropout`` is the probability that a pooled feature is dropped in training."""
        super().__init__()
        self.conv: nn.Module = nn.Identity()
        if hidden_channels is not None:
            conv = Conv2d(
                in_channels,
                hidden_channels,
                kernel_size=1,
                bias=False,
                norm=get_norm(norm, hidden_channels),
                activation=F.relu6,
            )
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            self.conv = conv
        self.dropout = nn.Dropout(dropout)
        self.in_features = hidden_channels or in_channels
        self.reset(num_classes)

    def reset(self, num_classes: int) -> None:
        """Start the last layer anew; with 0 classes there is none."""
        self.linear: nn.Module = nn.Identity()
        if num_classes:
            self.linear = linear = nn.Linear(self.in_features, num_classes)
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    def pooled(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → what the last layer reads, [B, in_features]."""
        return self.dropout(self.conv(x).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → logits, [B, K]."""
        return self.linear(self.pooled(x))


class DGNetClassifier(nn.Module):
    """A :class:`StagedBackbone` under a head. Its parameters are ``backbone.`` with the detector's
    names, and ``head.``."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: StagedBackbone,
        head: ClassifierHead,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """``head`` reads the ``res5`` of ``backbone``; ``pixel_mean`` and ``pixel_std`` are per
        channel, of images from 0 to 255."""
        super().__init__()
        self.backbone = backbone
        self.head = head
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images, RGB from 0 to 255, of any dtype, [B, 3, H, W] → logits, [B, K]."""
        return self.head(self.backbone((images - self.pixel_mean) / self.pixel_std)["res5"])


def build_classifier(cfg: CfgNode, *, in_channels: int = 3) -> DGNetClassifier:
    """The classifier that ``MODEL`` and ``CLASSIFICATION`` describe, for images of ``in_channels``.

    Raises:
        UserError: a value that is not supported, with the key's name.
    """
    if "res5" not in cfg.MODEL.RESNETS.OUT_FEATURES:
        raise UserError('MODEL.RESNETS.OUT_FEATURES: the classifier reads "res5"; add it')
    if cfg.INPUT.FORMAT != "RGB":
        raise UserError(f'INPUT.FORMAT {cfg.INPUT.FORMAT}: the classifier reads "RGB"')
    build = build_drnet_backbone if is_routed(cfg) else build_dgnet_backbone
    backbone = build(cfg, ShapeSpec(channels=in_channels))
    is_mobilenet = cfg.MODEL.DGNET.FAMILY == "mobilenetv2"
    head = ClassifierHead(
        backbone.output_shape()["res5"].channels,
        cfg.CLASSIFICATION.NUM_CLASSES,
        hidden_channels=MOBILENETV2_HEAD_CHANNELS if is_mobilenet else None,
        norm=cfg.MODEL.RESNETS.NORM,
        dropout=cfg.CLASSIFICATION.DROPOUT,
    )
    return DGNetClassifier(
        backbone, head, pixel_mean=cfg.MODEL.PIXEL_MEAN, pixel_std=cfg.MODEL.PIXEL_STD
    )
