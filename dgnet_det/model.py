"""Detectron2's models, with its many ways of refusing a config turned into one line."""

import detectron2.modeling
from detectron2.config import CfgNode
from torch import nn

from .config import one_line
from .errors import UserError


def build_model(cfg: CfgNode) -> nn.Module:
    """:func:`detectron2.modeling.build_model`.

    Raises:
        UserError: the config describes no model.
    """
    try:
        return detectron2.modeling.build_model(cfg)
    except UserError:
        raise
    except (AssertionError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"the config describes no model: {one_line(error)}") from error
