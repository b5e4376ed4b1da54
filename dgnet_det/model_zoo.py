"""This project's configs by name, as in Detectron2's ``model_zoo``. There are no weights."""

import difflib
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from omegaconf import DictConfig
from torch import nn

from dgnet_det.config import CONFIGS, is_classifier, read_yaml
from dgnet_det.errors import UserError
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.classifier import build_classifier


def get_config_file(config_path: str) -> str:
    """The path of a config in ``configs/``, such as
    ``COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml``.

    Raises:
        UserError: there is no such config.
    """
    path = CONFIGS / config_path
    if not path.is_file():
        nearest = difflib.get_close_matches(config_path, list(), n=1, cutoff=0.0)
        raise UserError(f"{config_path}: there is no such config; the nearest is {nearest[0]}")
    return str(path)


def get_config(config_path: str) -> CfgNode | DictConfig:
    """One of this project's configs: of a YAML file a ``CfgNode``, not frozen, of a Python file a
    LazyConfig.

    ``SOLVER.REFERENCE_WORLD_SIZE`` is 0, so that Detectron2's ``DefaultTrainer`` takes the batch,
    the learning rate and the iterations as they stand there: for 8 GPUs.

    Raises:
        UserError: as :func:`get_config_file`.
    """
    path = get_config_file(config_path)
    if path.endswith(".py"):
        return LazyConfig.load(path)
    cfg = read_yaml(path)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """The model of one of :func:`list`, with random weights.

    Args:
        config_path: as for :func:`get_config_file`.
        trained: this project has no weights, so that True is an error.
        device: default: a GPU, or the CPU where there is none.

    Raises:
        UserError: ``trained``, or as :func:`get_config_file`.
    """
    if trained:
        raise UserError(f"{config_path}: there are no trained weights; see docs/training.md")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cfg = get_config(config_path)
    if isinstance(cfg, DictConfig):
        return instantiate(cfg.model).to(device)
    cfg.MODEL.DEVICE = device
    return build_classifier(cfg).to(device) if is_classifier(cfg) else build_model(cfg)


def list() -> Sequence[str]:
    """The names of all configs, for :func:`get_config` and :func:`get`."""
    files = (file for pattern in ("*/*.yaml", "*/*.py") for file in CONFIGS.glob(pattern))
    models = (file for file in files if not file.name.startswith("Base-"))
    return sorted(x.relative_to(CONFIGS).as_posix() for x in models if x.parent.name != "common")
