"""Detectron2's models, with its many ways of refusing a config turned into one line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import detectron2.modeling
from detectron2.config import CfgNode
from torch import nn

from .backbones import DGNet
from .config import one_line
from .errors import UserError
from .padding import mask_padding


@contextmanager
def config_errors_in_one_line() -> Iterator[None]:
    """What Detectron2 raises in the body, while it builds from a config, becomes a
    :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except (AssertionError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"the config describes no model: {one_line(error)}") from error


def build_model(cfg: CfgNode) -> nn.Module:
    """:func:`detectron2.modeling.build_model`, and :func:`mask_padding` for a DG-Net's, where
    ``MODEL.DGNET.MASK_PADDING`` is on.

    Raises:
        UserError: the config describes no model.
    """
    with config_errors_in_one_line():
        model = detectron2.modeling.build_model(cfg)
    backbone = getattr(model, "backbone", None)
    if cfg.MODEL.DGNET.MASK_PADDING and isinstance(getattr(backbone, "bottom_up", backbone), DGNet):
        mask_padding(model)
    return model


def make_detector(meta_architecture: Callable[..., nn.Module], **parts: Any) -> nn.Module:
    """For LazyConfigs: ``meta_architecture(**parts)`` with :func:`mask_padding`, as
    :func:`build_model` makes it by default."""
    model = meta_architecture(**parts)
    mask_padding(model)
    return model
