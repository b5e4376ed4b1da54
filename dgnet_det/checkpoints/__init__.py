"""Checkpoints of static and dynamic networks: read safely, recognised, matched to a DG-Net
backbone."""

from .checkpointer import DGNetCheckpointer, WholeCheckpointer, class_names_in
from .convert import Conversion, convert
from .reading import read_checkpoint

__all__ = [
    "Conversion",
    "DGNetCheckpointer",
    "WholeCheckpointer",
    "class_names_in",
    "convert",
    "read_checkpoint",
]
