"""The backbone whose stages route between branches, and its builders."""

import re
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from torch import Tensor

from dgnet_det.drnet.branches import check_branches
from dgnet_det.drnet.stage import RoutedStage, differing
from dgnet_det.errors import UserError
from dgnet_det.graph.stage import Block
from dgnet_det.modeling.backbone.base import LEVELS, StagedBackbone, build_stages, fpn
from dgnet_det.modeling.backbone.families import family_of

KEY = "MODEL.DRNET.PRUNED_BRANCHES"
COPY = re.compile(r"(.*\.)copies\.(\d+)\.\w+\.")


class DRNet(StagedBackbone):
    """A backbone whose stages route between branches, :class:`RoutedStage`, or are plain."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """As :class:`StagedBackbone`; where a checkpoint has no copies of blocks, the copies start
        from its blocks with small differences."""
        has_copies = any(COPY.match(name) for name in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name in state_dict if not has_copies else ():
            if copied := COPY.match(name):
                block = f"{copied[1]}nodes.{copied[2]}.{name[copied.end() :]}"
                state_dict[name] = differing(state_dict[block])


def make_drnet(
    family: str,
    *,
    branches: Sequence[str],
    norm: str,
    out_features: Sequence[str],
    temperature: Sequence[float] = (1.0, 0.2),
    threshold: float = 0.1,
    soft_phase: float = 0.6,
    routed_stages: Sequence[str] = LEVELS,
    pruned_branches: Sequence[str] = (),
    freeze_at: int = 0,
    in_channels: int = 3,
    **network: Any,
) -> DRNet:
    """A :class:`DRNet` without a config.

    Args:
        family: as ``MODEL.DGNET.FAMILY``.
        branches, temperature, threshold, soft_phase, pruned_branches: as the keys of
            ``MODEL.DRNET``.
        routed_stages: as ``MODEL.DGNET.STAGES``.
        norm: of all layers, as for :func:`detectron2.layers.get_norm`.
        out_features, freeze_at: as for :class:`StagedBackbone`.
        network: which network of the family: arguments of :func:`.resnet.resnet` and so on.

    Raises:
        UserError: a value that is not supported, with the config key's name.
    """
    cells = family == "cell"
    check_branches(branches, cells=cells)
    if len(temperature) != 2 or min(temperature) <= 0:
        raise UserError(f"MODEL.DRNET.TEMPERATURE {temperature}: give two numbers above 0")
    for key, value in (("THRESHOLD", threshold), ("SOFT_PHASE", soft_phase)):
        if not 0 < value <= 1:
            raise UserError(f"MODEL.DRNET.{key} {value}: give a number above 0, up to 1")
    if "SyncBN" in norm:
        raise UserError(
            f"MODEL.RESNETS.NORM {norm}: processes run different branches, and cannot share their"
            " statistics: give BN, FrozenBN or GN"
        )
    if cells and set(routed_stages) != set(LEVELS):
        raise UserError(
            f"MODEL.DGNET.STAGES {list(routed_stages)}: name them all: cells are routed in all"
            " stages"
        )
    stem, levels = family_of(family).network(
        in_channels,
        norm=norm,
        shortcuts=True,
        **({"branches": branches} if cells else {}),
        **network,
    )
    pruned = parse_branches(pruned_branches)

    def make(name: str, blocks: Sequence[Block]) -> RoutedStage:
        try:
            return RoutedStage(
                blocks,
                branches=branches,
                temperature=(temperature[0], temperature[1]),
                threshold=threshold,
                soft_phase=soft_phase,
                pruned=pruned.pop(name, ()),
            )
        except UserError as error:
            raise UserError(f"{KEY}: {name}: {error}") from error

    stages = build_stages(levels, make, chosen=routed_stages)
    if pruned:
        raise UserError(f"{KEY}: there is no such stage, or it is plain: {', '.join(pruned)}")
    return DRNet(stem, stages, out_features=out_features, freeze_at=freeze_at)


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
            raise UserError(f"{KEY} {name!r}: give {form}, as dgnet report names them")
        found.setdefault(match[1], []).append((int(match[2]), match[3]))
    return found


@BACKBONE_REGISTRY.register()
def build_drnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DRNet:
    """The :class:`DRNet` that ``MODEL.DRNET``, ``MODEL.DGNET.FAMILY``, ``REGNET`` and ``STAGES``
    and ``MODEL.RESNETS`` describe.

    Raises:
        UserError: a value that is not supported, with the key's name.
    """
    drnet, dgnet, resnets = cfg.MODEL.DRNET, cfg.MODEL.DGNET, cfg.MODEL.RESNETS
    return make_drnet(
        dgnet.FAMILY,
        branches=drnet.BRANCHES,
        norm=resnets.NORM,
        out_features=resnets.OUT_FEATURES,
        temperature=drnet.TEMPERATURE,
        threshold=drnet.THRESHOLD,
        soft_phase=drnet.SOFT_PHASE,
        routed_stages=dgnet.STAGES,
        pruned_branches=drnet.PRUNED_BRANCHES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels,
        **family_of(dgnet.FAMILY).arguments(cfg),
    )


@BACKBONE_REGISTRY.register()
def build_drnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_drnet_backbone` under the FPN of ``MODEL.FPN``."""
    return fpn(cfg, build_drnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_drnet_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_drnet_backbone` under RetinaNet's FPN."""
    return fpn(cfg, build_drnet_backbone(cfg, input_shape), retinanet=True)
