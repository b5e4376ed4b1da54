"""Backbones: one file per family of blocks, one for the backbone that they share, with graphs for
stages, and one for routed stages."""

from dgnet_det.modeling.backbone.dgnet import DGNet, build_dgnet_backbone, make_dgnet
from dgnet_det.modeling.backbone.drnet import build_drnet_backbone

__all__ = ["DGNet", "build_dgnet_backbone", "build_drnet_backbone", "make_dgnet"]
