"""Detectron2's models, after the checks of a config that their builders leave out."""

import os
import shutil
from collections.abc import Sequence

import detectron2.modeling
from detectron2.config import CfgNode
from torch import nn

from dgnet_det.config import check_supported, feature_maps
from dgnet_det.errors import UserError, check_choice
from dgnet_det.modeling.observation import dgnet_of


def build_model(cfg: CfgNode) -> nn.Module:
    """:func:`detectron2.modeling.build_model`.

    Raises:
        UserError: as :func:`check_supported`, or heads or anchors do not go with the feature maps.
    """
    check_supported(cfg)
    _check_features(cfg)
    return detectron2.modeling.build_model(cfg)


def _check_features(cfg: CfgNode) -> None:
    """Check that there is every feature map that heads read, with anchors for each."""
    readers = ["RETINANET"] if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else ["RPN", "ROI_HEADS"]
    if made := feature_maps(cfg):
        for reader in readers:
            check_choice(f"MODEL.{reader}.IN_FEATURES", cfg.MODEL[reader].IN_FEATURES, made)
    number = len(cfg.MODEL[readers[0]].IN_FEATURES)
    for key in ("SIZES", "ASPECT_RATIOS"):
        rows = cfg.MODEL.ANCHOR_GENERATOR[key]
        if rows and not isinstance(rows[0], Sequence):
            continue  # one list for all maps
        if len(rows) not in (1, number) or len({len(row) for row in rows}) > 1:
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} {rows}: give one list for all of"
                f" MODEL.{readers[0]}.IN_FEATURES, or {number} lists of equal length"
            )


def compile_backbone(cfg: CfgNode, model: nn.Module) -> None:
    """Have torch compile the backbone in ``model`` when it first runs, if ``MODEL.COMPILE`` says
    so. Names in checkpoints stay as they are.

    Raises:
        UserError: the device is a CPU, and there is no C++ compiler; or as :func:`dgnet_of`.
    """
    if not cfg.MODEL.COMPILE:
        return
    compiler = os.environ.get("CXX", "g++")
    if cfg.MODEL.DEVICE == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"MODEL.COMPILE: there is no C++ compiler {compiler}: install it, or set the key to"
            " False"
        )
    dgnet_of(model).compile()
