"""DG-Net backbones: one file per family of blocks, one for the backbone that they share."""

from dgnet_det.modeling.backbone.dgnet import (
    DGNet,
    build_dgnet_backbone,
    build_dgnet_fpn_backbone,
    build_dgnet_retinanet_fpn_backbone,
    make_dgnet,
)

__all__ = [
    "DGNet",
    "build_dgnet_backbone",
    "build_dgnet_fpn_backbone",
    "build_dgnet_retinanet_fpn_backbone",
    "make_dgnet",
]
