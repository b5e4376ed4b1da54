"""The keys under ``MODEL.DGNET`` and how a YAML file becomes a config."""

import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from .errors import UserError


def add_dgnet_config(cfg: CfgNode) -> None:
    """Add the ``MODEL.DGNET`` keys to ``cfg``. Depth, groups, widths, norm and strides stay in
    ``MODEL.RESNETS``."""
    cfg.MODEL.DGNET = CfgNode()
    # Blocks of the nodes: "resnet" (ResNet and, with MODEL.RESNETS.NUM_GROUPS, ResNeXt),
    # "mobilenetv2" or "regnet".
    cfg.MODEL.DGNET.FAMILY = "resnet"
    # Which RegNet: "X_" (RegNetX) or "Y_" (with squeeze-and-excitation) and 400M, 600M, 800M, 1600M
    # or 3200M, its multiply-adds.
    cfg.MODEL.DGNET.REGNET = "X_600M"
    # "paper": edges replace shortcuts, to train from nothing. "residual": starts equal to a static
    # checkpoint.
    cfg.MODEL.DGNET.WIRING = "paper"
    # "dynamic": α per image (DG-Net). "static": one learned α per edge. "none": the family's plain
    # network.
    cfg.MODEL.DGNET.EDGE_WEIGHTS = "dynamic"
    # Whether MODEL.BACKBONE.FREEZE_AT also freezes the routers and thresholds of the stages that it
    # freezes.
    cfg.MODEL.DGNET.FREEZE_ROUTERS = False
    # Recompute each stage in the backward pass: less memory, about a third more time. With NORM
    # "BN", running statistics are then updated twice an iteration.
    cfg.MODEL.DGNET.CHECKPOINT_STAGES = False


def get_cfg() -> CfgNode:
    """Detectron2's default config with the ``MODEL.DGNET`` keys."""
    cfg = get_detectron2_cfg()
    add_dgnet_config(cfg)
    return cfg


def load_cfg(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The frozen config of a YAML file and ``KEY VALUE`` overrides, for the CPU if there is no GPU.

    Raises:
        UserError: the file is missing or is no YAML, or a key or value is not one of Detectron2's
            or this project's.
    """
    if not os.path.isfile(config_file):
        raise UserError(f"{config_file}: no such config file (--config-file)")
    cfg = get_cfg()
    try:
        cfg.merge_from_file(config_file)
    except Exception as error:  # yacs and PyYAML raise half a dozen kinds
        raise UserError(f"{config_file}: {_one_line(error)}") from error
    if len(opts) % 2:
        raise UserError(f"{opts[-1]}: an override needs a value: give KEY VALUE pairs")
    try:
        cfg.merge_from_list(list(opts))
    except Exception as error:
        raise UserError(f"overrides {' '.join(opts)}: {_one_line(error)}") from error
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _one_line(error: Exception) -> str:
    message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return " ".join(message.split()) or type(error).__name__
