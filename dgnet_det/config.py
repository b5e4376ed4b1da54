"""The keys under ``MODEL.DGNET`` and ``CLASSIFICATION``, and how a YAML file becomes a config."""

import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from .errors import UserError


def add_dgnet_config(cfg: CfgNode) -> None:
    """Add the ``MODEL.DGNET`` and ``CLASSIFICATION`` keys to ``cfg``. Depth, groups, widths, norm
    and strides stay in ``MODEL.RESNETS``."""
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

    # tools/train_classifier.py. Batch, learning rate, decay, momentum, warm-up factor, AMP and the
    # checkpoint and evaluation periods (in iterations) stay in SOLVER and TEST; its iterations and
    # steps are not used.
    cfg.CLASSIFICATION = CfgNode()
    # "imagefolder": ROOT/train and ROOT/val with a folder per class. "fashion_mnist": found by
    # itself, ROOT is not used.
    cfg.CLASSIFICATION.DATASET = "imagefolder"
    cfg.CLASSIFICATION.ROOT = "datasets/imagenet"
    cfg.CLASSIFICATION.NUM_CLASSES = 1000
    # Pixels: the side of the network's input, and the shorter side of a test image before its
    # central crop.
    cfg.CLASSIFICATION.SIZE = 224
    cfg.CLASSIFICATION.TEST_RESIZE = 256
    # Smallest and largest area of the random crop, as shares of the image.
    cfg.CLASSIFICATION.CROP_AREA = [0.08, 1.0]
    cfg.CLASSIFICATION.EPOCHS = 100
    cfg.CLASSIFICATION.WARMUP_EPOCHS = 5
    cfg.CLASSIFICATION.LABEL_SMOOTHING = 0.1
    # Before the last layer.
    cfg.CLASSIFICATION.DROPOUT = 0.0
    # Forward and backward passes into which each process splits its share of SOLVER.IMS_PER_BATCH,
    # where that does not fit in memory. The optimizer steps once for all of them.
    cfg.CLASSIFICATION.ACCUMULATION = 1


def get_cfg() -> CfgNode:
    """Detectron2's default config with this project's keys."""
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
        raise UserError(f"{config_file}: {one_line(error)}") from error
    if len(opts) % 2:
        raise UserError(f"{opts[-1]}: an override needs a value: give KEY VALUE pairs")
    try:
        cfg.merge_from_list(list(opts))
    except Exception as error:
        raise UserError(f"overrides {' '.join(opts)}: {one_line(error)}") from error
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def is_classifier(cfg: CfgNode) -> bool:
    """Whether a config is a classifier's: its backbone ends at ``res5`` without an FPN."""
    return (
        cfg.MODEL.BACKBONE.NAME == "build_dgnet_backbone"
        and "res5" in cfg.MODEL.RESNETS.OUT_FEATURES
    )


def one_line(error: Exception) -> str:
    """The type and message of another library's error, for a :class:`UserError`."""
    message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return f"{type(error).__name__}: {' '.join(message.split())}"
