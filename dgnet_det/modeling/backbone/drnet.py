"""The backbone whose stages route between branches, and its builders."""

import re
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN

from dgnet_det.drnet.branches import check_branches
from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.errors import UserError
from dgnet_det.graph.stage import Block
from dgnet_det.modeling.backbone.base import LEVELS, StagedBackbone, build_stages, fpn
from dgnet_det.modeling.backbone.families import family_of

KEY = "MODEL.DRNET.PRUNED_BRANCHES"


class DRNet(StagedBackbone):
    """A backbone whose stages are :class:`RoutedStage`, or plain ones."""


def branch_name(stage: str, connection: str, name: str) -> str:
    """``res4.0:2-identity``, as in ``MODEL.DRNET.PRUNED_BRANCHES``."""
    return f"{stage}:{connection}-{name}"


def parse_branches(names: Sequence[str]) -> dict[str, list[tuple[int, str]]]:
    """Connections and branches by stage, ``{"res4.0": [(2, "identity")]}``, of names as
    :func:`branch_name` makes them.

    Raises:
        UserError: a name of another form.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = re.fullmatch(r"(res\d\.\d+):(\d+)-(\w+)", str(name))
        if match is None:
            form = "stage:connection-branch, such as 'res4.0:2-identity'"
            raise UserError(f"{KEY} {name!r}: give {form}, as tools/wiring_report.py names them")
        found.setdefault(match[1], []).append((int(match[2]), match[3]))
    return found


@BACKBONE_REGISTRY.register()
def build_drnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DRNet:
    """The :class:`DRNet` that ``MODEL.DRNET``, ``MODEL.DGNET.FAMILY``,
    ``REGNET`` and ``STAGES`` and ``MODEL.RESNETS`` describe.

    Raises:
        UserError: a value that is not supported, with the key's name.
    """
    drnet, resnets, family = cfg.MODEL.DRNET, cfg.MODEL.RESNETS, family_of(cfg.MODEL.DGNET.FAMILY)
    cells = family.name == "cell"
    check_branches(drnet.BRANCHES, cells=cells)
    if len(drnet.TEMPERATURE) != 2 or min(drnet.TEMPERATURE) <= 0:
        raise UserError(f"MODEL.DRNET.TEMPERATURE {drnet.TEMPERATURE}: give two numbers above 0")
    stem, levels = family.network(
        input_shape.channels, norm=resnets.NORM, shortcuts=True, **family.arguments(cfg)
    )
    chosen = cfg.MODEL.DGNET.STAGES
    if cells and set(chosen) != set(LEVELS):
        raise UserError(
            f"MODEL.DGNET.STAGES {list(chosen)}: name them all: cells are routed in all stages"
        )
    pruned = parse_branches(drnet.PRUNED_BRANCHES)

    def make(name: str, blocks: Sequence[Block]) -> RoutedStage:
        try:
            return RoutedStage(
                blocks,
                branches=drnet.BRANCHES,
                temperature=tuple(drnet.TEMPERATURE),
                pruned=pruned.pop(name, ()),
            )
        except UserError as error:
            raise UserError(f"{KEY}: {name}: {error}") from error

    stages = build_stages(levels, make, chosen=chosen)
    if pruned:
        raise UserError(f"{KEY}: there is no such stage, or it is plain: {', '.join(pruned)}")
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return DRNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=freeze_at)


@BACKBONE_REGISTRY.register()
def build_drnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_drnet_backbone` under the FPN of ``MODEL.FPN``."""
    return fpn(cfg, build_drnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_drnet_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_drnet_backbone` under RetinaNet's FPN."""
    return fpn(cfg, build_drnet_backbone(cfg, input_shape), retinanet=True)
