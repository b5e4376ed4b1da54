"""Detectron2's models, with its many ways of refusing a config turned into one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import detectron2.modeling
from detectron2.config import CfgNode
from torch import nn

from dgnet_det.config import check_supported, one_line
from dgnet_det.errors import UserError


@contextmanager
def config_errors_in_one_line() -> Iterator[None]:
    """What Detectron2's own checks of a config raise in the body becomes a :class:`UserError`. What
    is raised in any other package is a bug there, and keeps its traceback."""
    try:
        yield
    except UserError:
        raise
    except (AssertionError, KeyError, ValueError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].partition(".")[0] not in ("detectron2", "fvcore"):
            raise
        raise UserError(f"the config describes no model: {one_line(error)}") from error


def build_model(cfg: CfgNode) -> nn.Module:
    """:func:`detectron2.modeling.build_model`.

    Raises:
        UserError: the config describes no model, or as :func:`check_supported`.
    """
    check_supported(cfg)
    with config_errors_in_one_line():
        return detectron2.modeling.build_model(cfg)
