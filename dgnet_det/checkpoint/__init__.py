"""Checkpoints of static and dynamic networks: read safely, recognised, matched to a DG-Net
backbone."""

from dgnet_det.checkpoint.checkpointer import (
    CLASS_NAMES,
    DGNetCheckpointer,
    class_names_in,
    write_checkpoint,
)
from dgnet_det.checkpoint.converting import Conversion, convert
from dgnet_det.checkpoint.reading import read_checkpoint

__all__ = [
    "CLASS_NAMES",
    "Conversion",
    "DGNetCheckpointer",
    "class_names_in",
    "convert",
    "read_checkpoint",
    "write_checkpoint",
]
