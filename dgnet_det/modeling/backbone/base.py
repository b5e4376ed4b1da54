"""What the networks of this project share: a stem, stages in a row, and an FPN on top."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from dgnet_det.errors import UserError, check_choice
from dgnet_det.graph.routing import valid_sizes
from dgnet_det.graph.stage import Block, PlainStage
from dgnet_det.modeling.backbone.matching import load_static_names
from dgnet_det.modeling.folding import fold_frozen_norms

LEVELS = ("res2", "res3", "res4", "res5")


class StagedBackbone(Backbone):
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
        self.register_load_state_dict_pre_hook(load_static_names)

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
        decides = any(hasattr(stage, "decisions") for stage in self.stages().values())
        valid = _strided(valid_sizes(x) if decides else None, self.stem.stride)
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name in self.stage_names:
            for stage in getattr(self, name):
                valid = _strided(valid, stage.stride)
                x = stage(x, valid)
            if name in self._out_features:
                outputs[name] = x
        return outputs


def _strided(sizes: Tensor | None, stride: int) -> Tensor | None:
    """⌈sizes / stride⌉, of integers."""
    if sizes is None or stride == 1:
        return sizes
    return torch.div(sizes + (stride - 1), stride, rounding_mode="floor")


def build_stages(
    levels: Sequence[Sequence[Sequence[Block]]],
    make: Callable[[str, Sequence[Block]], PlainStage],
    *,
    chosen: Sequence[str],
) -> list[list[PlainStage]]:
    """The stages of res2, res3, …: ``make(name, blocks)`` for those of the ``chosen`` levels
    (``MODEL.DGNET.STAGES``), whose names are ``res2.0``, …; the others are plain.

    Raises:
        UserError: there is no such level.
    """
    check_choice("MODEL.DGNET.STAGES", chosen, LEVELS)
    return [
        [
            make(f"{level}.{k}", blocks) if level in chosen else PlainStage(blocks)
            for k, blocks in enumerate(of_level)
        ]
        for level, of_level in zip(LEVELS, levels, strict=True)
    ]


def fpn(cfg: CfgNode, bottom_up: StagedBackbone, *, retinanet: bool = False) -> FPN:
    """The FPN of ``MODEL.FPN`` on ``bottom_up``, or RetinaNet's."""
    in_features = cfg.MODEL.FPN.IN_FEATURES
    check_choice("MODEL.FPN.IN_FEATURES", in_features, bottom_up.output_shape())
    if not in_features:
        raise UserError("MODEL.FPN.IN_FEATURES: empty: name at least one feature map")
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    top_block: nn.Module = LastLevelMaxPool()
    if retinanet:
        top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, out_channels)
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
