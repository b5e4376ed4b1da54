"""The backbone: a stem and stages that are graphs, and its builders."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from dgnet_det.errors import UserError, check_choice
from dgnet_det.graph.routing import valid_sizes
from dgnet_det.graph.stage import Block, DynamicGraph, PlainStage
from dgnet_det.graph.wirings import PaperGraph, ResidualGraph
from dgnet_det.modeling.backbone.families import family_of
from dgnet_det.modeling.backbone.matching import load_static_names
from dgnet_det.modeling.folding import fold_frozen_norms

LEVELS = ("res2", "res3", "res4", "res5")
WIRINGS: dict[str, type[DynamicGraph]] = {"paper": PaperGraph, "residual": ResidualGraph}
EDGE_WEIGHTS = ("dynamic", "static", "none")


class DGNet(Backbone):
    """Stem, then res2..res5, each one or more stages in a row (``res4.0``, ``res4.1``, …)."""

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[PlainStage]],
        *,
        out_features: Sequence[str],
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            stem: the layers before the first stage.
            stages: those of res2, res3, …. What comes after the last of ``out_features`` is
                dropped.
            out_features: names of the outputs, out of ``stem``, ``res2``, ….
            freeze_at: number of leading parts to freeze: 1 the stem, 2 also res2, and so on.

        Raises:
            UserError: an unknown name in ``out_features``.
        """
        super().__init__()
        names = [f"res{i}" for i in range(2, len(stages) + 2)]
        check_choice("MODEL.RESNETS.OUT_FEATURES", out_features, ["stem", *names])
        if not out_features:
            raise UserError("MODEL.RESNETS.OUT_FEATURES: empty: name at least one feature map")
        last = max((names.index(name) + 1 for name in out_features if name in names), default=0)
        self.stem = stem
        self.stage_names = names[:last]
        self._out_features = list(out_features)
        self._out_feature_channels = {"stem": stem.out_channels}
        self._out_feature_strides = {"stem": stem.stride}
        stride = stem.stride
        for name, level in zip(self.stage_names, stages, strict=False):
            self.add_module(name, nn.ModuleList(level))
            for stage in level:
                stride *= stage.stride
            self._out_feature_channels[name] = level[-1].out_channels
            self._out_feature_strides[name] = stride
        self.freeze(freeze_at)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Where torch lets a module load in its own way, before its children: here static names
        become this project's."""
        load_static_names(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def stages(self) -> dict[str, PlainStage]:
        """All stages in order, by name: ``res2.0``, …."""
        return {
            f"{name}.{k}": cast(PlainStage, stage)
            for name in self.stage_names
            for k, stage in enumerate(getattr(self, name))
        }

    def freeze(self, freeze_at: int) -> None:
        """Freeze the first ``freeze_at`` parts (1: the stem, 2: also res2, …), each whole."""
        if freeze_at >= 1:
            self.stem.freeze()
        frozen = self.stage_names[: max(freeze_at - 1, 0)]
        for name, stage in self.stages().items():
            if name.split(".")[0] in frozen:
                stage.freeze()
        fold_frozen_norms(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images, [B, 3, H, W], padded with zeros as Detectron2 does → for each name of
        ``out_features`` its feature map, [B, C, ⌈H / stride⌉, ⌈W / stride⌉]."""
        valid = valid_sizes(x)
        stride = self.stem.stride
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name in self.stage_names:
            for stage in getattr(self, name):
                stride *= stage.stride
                x = stage(x, torch.div(valid + stride - 1, stride, rounding_mode="floor"))
            if name in self._out_features:
                outputs[name] = x
        return outputs


def make_dgnet(
    family: str,
    *,
    wiring: str,
    norm: str,
    out_features: Sequence[str],
    edge_weights: str = "dynamic",
    graph_stages: Sequence[str] = ("res2", "res3", "res4", "res5"),
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
    all_of_them = "in the paper wiring all stages are graphs (set MODEL.DGNET.WIRING to residual)"
    stem, levels = family_of(family).network(
        in_channels, norm=norm, shortcuts=graph_of.fixed_chain, **network
    )
    stages = build_stages(
        levels,
        lambda blocks, _: graph_of(blocks, edge_weights=edge_weights, norm=norm),
        chosen=() if plain else graph_stages,
        all_of_them="" if graph_of.fixed_chain else all_of_them,
    )
    return DGNet(stem, stages, out_features=out_features, freeze_at=freeze_at)


def build_stages(
    levels: Sequence[Sequence[Sequence[Block]]],
    make: Callable[[Sequence[Block], Any], PlainStage],
    *,
    chosen: Sequence[str],
    all_of_them: str,
    pruned: Mapping[str, Collection] = {},
    key: str = "",
) -> list[list[PlainStage]]:
    """The stages of res2, res3, …, from the blocks of each.

    Args:
        levels: the blocks.
        make: a stage of the ``chosen`` levels, from its blocks and what is pruned of it. Stages of
            the others are plain.
        chosen: ``MODEL.DGNET.STAGES``.
        all_of_them: why these must be all; empty if they need not.
        pruned: by stage, as ``key`` names it.

    Raises:
        UserError: as ``make``, a level that there is not or that is left out, or something is
            pruned of a stage that ``make`` does not build.
    """
    check_choice("MODEL.DGNET.STAGES", chosen, LEVELS)
    if all_of_them and set(chosen) != set(LEVELS):
        raise UserError(f"MODEL.DGNET.STAGES {list(chosen)}: name them all: {all_of_them}")
    left = dict(pruned)

    def stage(level: str, name: str, blocks: Sequence[Block]) -> PlainStage:
        if level not in chosen:
            return PlainStage(blocks)
        try:
            return make(blocks, left.pop(name, ()))
        except UserError as error:
            raise UserError(f"{key}: {name}: {error}") from error

    stages = [
        [stage(level, f"{level}.{k}", blocks) for k, blocks in enumerate(of_level)]
        for level, of_level in zip(LEVELS, levels, strict=True)
    ]
    if left:
        raise UserError(f"{key}: there is no such stage, or it is plain: {', '.join(left)}")
    return stages


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


def fpn(cfg: CfgNode, bottom_up: DGNet, *, retinanet: bool = False) -> FPN:
    """The FPN of ``MODEL.FPN`` on ``bottom_up``, or RetinaNet's."""
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    top_block: nn.Module = LastLevelMaxPool()
    if retinanet:
        top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, out_channels)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
