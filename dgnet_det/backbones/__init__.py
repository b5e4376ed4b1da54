"""DG-Net backbones: one file per family of blocks, one for the backbone that they share."""

from .dgnet import DGNet, build_dgnet_backbone, build_dgnet_fpn_backbone

__all__ = ["DGNet", "build_dgnet_backbone", "build_dgnet_fpn_backbone"]
