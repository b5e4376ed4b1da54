"""Checkpoints of static and dynamic networks: read safely, recognised, matched to a DG-Net
backbone."""

from dgnet_det.checkpoint.checkpointer import DGNetCheckpointer, WholeCheckpointer, class_names_in
from dgnet_det.checkpoint.converting import Conversion, convert
from dgnet_det.checkpoint.reading import read_checkpoint

__all__ = [
    "Conversion",
    "DGNetCheckpointer",
    "WholeCheckpointer",
    "class_names_in",
    "convert",
    "read_checkpoint",
]
