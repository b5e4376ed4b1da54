"""A trained detector for one image at a time."""

import torch
from detectron2.config import CfgNode
from detectron2.engine.defaults import DefaultPredictor

from .checkpoints import DGNetCheckpointer


def load_predictor(cfg: CfgNode) -> DefaultPredictor:
    """Detectron2's :class:`DefaultPredictor`, which takes [H, W, 3] BGR images, with
    ``MODEL.WEIGHTS`` loaded by :class:`DGNetCheckpointer`; on the CPU where there is no GPU."""
    cfg = cfg.clone()
    cfg.defrost()
    weights, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    predictor = DefaultPredictor(cfg)
    DGNetCheckpointer(predictor.model).load(weights)
    return predictor
