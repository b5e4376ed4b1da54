"""Checkpoints of static and dynamic networks: read safely, recognised, matched to a DG-Net
backbone."""

from dgnet_det.checkpoint.checkpointer import DGNetCheckpointer, class_names_in, write_checkpoint
from dgnet_det.checkpoint.converting import convert
from dgnet_det.checkpoint.reading import read_checkpoint

__all__ = ["DGNetCheckpointer", "class_names_in", "convert", "read_checkpoint", "write_checkpoint"]
