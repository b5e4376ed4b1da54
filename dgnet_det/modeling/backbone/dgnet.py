"""DG-Net: the backbone whose stages are graphs, and its builders."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN

from dgnet_det.errors import UserError, check_choice
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.graph.wirings import PaperGraph, ResidualGraph
from dgnet_det.modeling.backbone.base import LEVELS, StagedBackbone, build_stages, fpn
from dgnet_det.modeling.backbone.families import family_of

WIRINGS: dict[str, type[DynamicGraph]] = {"paper": PaperGraph, "residual": ResidualGraph}
EDGE_WEIGHTS = ("dynamic", "static", "none")


class DGNet(StagedBackbone):
    """A backbone whose stages are :class:`DynamicGraph`, or plain ones."""


def make_dgnet(
    family: str,
    *,
    wiring: str,
    norm: str,
    out_features: Sequence[str],
    edge_weights: str = "dynamic",
    graph_stages: Sequence[str] = LEVELS,
    freeze_at: int = 0,
    in_channels: int = 3,
    **network: Any,
) -> DGNet:
    """A :class:`DGNet` without a config.

    Args:
        family, wiring, edge_weights: as the keys of ``MODEL.DGNET``.
        graph_stages: as ``MODEL.DGNET.STAGES``.
        norm: of all layers, as for :func:`detectron2.layers.get_norm`.
        out_features, freeze_at: as for :class:`DGNet`.
        network: which network of the family: arguments of :func:`.resnet.resnet` and so on.

    Raises:
        UserError: a value that is not supported, with the config key's name.
    """
    check_choice("MODEL.DGNET.WIRING", wiring, WIRINGS)
    check_choice("MODEL.DGNET.EDGE_WEIGHTS", edge_weights, EDGE_WEIGHTS)
    if family == "cell":
        raise UserError(
            "MODEL.DGNET.FAMILY cell: its connections choose between branches: set"
            " MODEL.BACKBONE.NAME to build_drnet_backbone or build_drnet_fpn_backbone"
        )
    plain = edge_weights == "none"
    graph_of = WIRINGS["residual" if plain else wiring]
    if not graph_of.has_shortcuts and set(graph_stages) != set(LEVELS):
        raise UserError(
            f"MODEL.DGNET.STAGES {list(graph_stages)}: name them all: in the {wiring} wiring all"
            " stages are graphs (set MODEL.DGNET.WIRING to residual)"
        )
    stem, levels = family_of(family).network(
        in_channels, norm=norm, shortcuts=graph_of.has_shortcuts, **network
    )
    stages = build_stages(
        levels,
        lambda _, blocks: graph_of(blocks, edge_weights=edge_weights, norm=norm),
        chosen=() if plain else graph_stages,
    )
    return DGNet(stem, stages, out_features=out_features, freeze_at=freeze_at)


@BACKBONE_REGISTRY.register()
def build_dgnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DGNet:
    """The :class:`DGNet` that ``MODEL.DGNET`` and ``MODEL.RESNETS`` describe.

    Raises:
        UserError: a value that is not supported, with the key's name.
    """
    dgnet, resnets = cfg.MODEL.DGNET, cfg.MODEL.RESNETS
    network = family_of(dgnet.FAMILY).arguments(cfg)
    return make_dgnet(
        dgnet.FAMILY,
        wiring=dgnet.WIRING,
        norm=resnets.NORM,
        out_features=resnets.OUT_FEATURES,
        edge_weights=dgnet.EDGE_WEIGHTS,
        graph_stages=dgnet.STAGES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels,
        **network,
    )


@BACKBONE_REGISTRY.register()
def build_dgnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_dgnet_backbone` under the FPN of ``MODEL.FPN``, with a max-pooled P6."""
    return fpn(cfg, build_dgnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_dgnet_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_dgnet_backbone` under RetinaNet's FPN, whose P6 and P7 are convolved from
    res5."""
    return fpn(cfg, build_dgnet_backbone(cfg, input_shape), retinanet=True)
