"""The backbone whose stages route between branches, and its builders."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN

from dgnet_det.drnet.branches import check_branches
from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.errors import UserError
from dgnet_det.graph.topology import parse_pruned
from dgnet_det.modeling.backbone.dgnet import LEVELS, DGNet, build_stages, fpn
from dgnet_det.modeling.backbone.families import family_of

KEY = "MODEL.DRNET.PRUNED_BRANCHES"


def make_drnet(
    family: str,
    *,
    branches: Sequence[str],
    norm: str,
    out_features: Sequence[str],
    temperature: tuple[float, float] = (1.0, 1.0),
    routed_stages: Sequence[str] = LEVELS,
    pruned_branches: Sequence[str] = (),
    freeze_at: int = 0,
    in_channels: int = 3,
    **network: Any,
) -> DGNet:
    """A :class:`DGNet` of :class:`RoutedStage`, without a config.

    Args:
        family: as ``MODEL.DGNET.FAMILY``.
        branches, temperature, pruned_branches: as the keys of ``MODEL.DRNET``.
        routed_stages: as ``MODEL.DGNET.STAGES``.
        norm, out_features, freeze_at, in_channels, network: as for :func:`.dgnet.make_dgnet`.

    Raises:
        UserError: a value that is not supported, with the config key's name.
    """
    cells = family == "cell"
    check_branches(branches, cells=cells)
    if len(temperature) != 2 or min(temperature) <= 0:
        raise UserError(f"MODEL.DRNET.TEMPERATURE {list(temperature)}: give two numbers above 0")
    if cells:
        network["branches"] = branches
    stem, levels = family_of(family).network(in_channels, norm=norm, shortcuts=True, **network)
    stages = build_stages(
        levels,
        lambda blocks, pruned: RoutedStage(
            blocks,
            branches=branches,
            temperature=(temperature[0], temperature[1]),
            pruned=pruned,
        ),
        chosen=routed_stages,
        all_of_them="cells are routed in all stages" if cells else "",
        pruned=parse_pruned(
            KEY, pruned_branches, r"\w+", "stage:connection-branch, such as 'res4.0:2-identity'"
        ),
        key=KEY,
    )
    return DGNet(stem, stages, out_features=out_features, freeze_at=freeze_at)


def branch_name(stage: str, connection: int, name: str) -> str:
    """``res4.0:2-identity``, as in ``MODEL.DRNET.PRUNED_BRANCHES``."""
    return f"{stage}:{connection}-{name}"


@BACKBONE_REGISTRY.register()
def build_drnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DGNet:
    """The :class:`DGNet` of routed stages that ``MODEL.DRNET``, ``MODEL.DGNET.FAMILY``, ``REGNET``
    and ``STAGES`` and ``MODEL.RESNETS`` describe.

    Raises:
        UserError: a value that is not supported, with the key's name.
    """
    drnet, family = cfg.MODEL.DRNET, family_of(cfg.MODEL.DGNET.FAMILY)
    return make_drnet(
        family.name,
        branches=drnet.BRANCHES,
        norm=cfg.MODEL.RESNETS.NORM,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        temperature=tuple(drnet.TEMPERATURE),
        routed_stages=cfg.MODEL.DGNET.STAGES,
        pruned_branches=drnet.PRUNED_BRANCHES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels,
        **family.arguments(cfg),
    )


@BACKBONE_REGISTRY.register()
def build_drnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_drnet_backbone` under the FPN of ``MODEL.FPN``."""
    return fpn(cfg, build_drnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_drnet_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_drnet_backbone` under RetinaNet's FPN."""
    return fpn(cfg, build_drnet_backbone(cfg, input_shape), retinanet=True)
