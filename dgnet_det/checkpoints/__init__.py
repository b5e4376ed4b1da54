"""Checkpoints of static and dynamic networks: read safely, recognised, matched to a DG-Net
backbone."""

from .checkpointer import DGNetCheckpointer
from .convert import Conversion, convert
from .reading import read_checkpoint

__all__ = ["Conversion", "DGNetCheckpointer", "convert", "read_checkpoint"]
