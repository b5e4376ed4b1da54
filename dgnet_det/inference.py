"""A trained detector for one image at a time."""

from detectron2.config import CfgNode
from detectron2.engine.defaults import DefaultPredictor

from .checkpoints import DGNetCheckpointer
from .model import config_errors_in_one_line


def load_predictor(cfg: CfgNode) -> DefaultPredictor:
    """Detectron2's :class:`DefaultPredictor`, which takes [H, W, 3] BGR images, with
    ``MODEL.WEIGHTS`` loaded by :class:`DGNetCheckpointer`.

    Raises:
        UserError: the config describes no model, or the weights do not fit it.
    """
    cfg = cfg.clone()
    cfg.defrost()
    weights, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""
    with config_errors_in_one_line():
        predictor = DefaultPredictor(cfg)
    DGNetCheckpointer(predictor.model).load(weights)
    return predictor
