"""The learning rate of the paper's recipe (§6.1): a warm-up, then a cosine."""

from detectron2.config import CfgNode
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)

from dgnet_det.errors import UserError


def lr_multiplier(cfg: CfgNode) -> ParamScheduler:
    """The factor on ``SOLVER.BASE_LR``, as a function of the share of training that is done.

    With T iterations, T_w of them warm-up, and f = ``SOLVER.WARMUP_FACTOR``, iteration t has

        f + (1 - f) · t / T_w                               for t < T_w
        (1 + cos(π · (t - T_w) / (T - T_w))) / 2            after that

    Raises:
        UserError: a warm-up that is not shorter than the training.
    """
    options = cfg.CLASSIFICATION
    if not 0 <= options.WARMUP_EPOCHS < options.EPOCHS:
        raise UserError(
            f"CLASSIFICATION.WARMUP_EPOCHS {options.WARMUP_EPOCHS}: it must be at least 0 and less"
            f" than CLASSIFICATION.EPOCHS {options.EPOCHS}"
        )
    cosine = CosineParamScheduler(1.0, 0.0)
    if options.WARMUP_EPOCHS == 0:
        return cosine
    warmup = options.WARMUP_EPOCHS / options.EPOCHS
    return CompositeParamScheduler(
        [LinearParamScheduler(cfg.SOLVER.WARMUP_FACTOR, 1.0), cosine],
        lengths=[warmup, 1 - warmup],
        interval_scaling=["rescaled", "rescaled"],
    )
