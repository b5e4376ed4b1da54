"""The backbone: a stem and stages that are graphs, and its builders."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..graph import EDGE_WEIGHTS, WIRINGS, Block, DynamicGraph
from ..routing import valid_sizes
from .mobilenetv2 import mobilenetv2_from_config
from .regnet import regnet_from_config
from .resnet import resnet_from_config

# A family maps a config to its stem and, for each of res2..res5, the blocks of each of its graphs.
FAMILIES: dict[str, Callable[..., tuple[CNNBlockBase, list[list[list[Block]]]]]] = {
    "resnet": resnet_from_config,
    "mobilenetv2": mobilenetv2_from_config,
    "regnet": regnet_from_config,
}


class DGNet(Backbone):
    """Stem, then res2..res5, each one or more :class:`DynamicGraph` in a row (``res4.0``,
    ``res4.1``, …)."""

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[DynamicGraph]],
        *,
        out_features: Sequence[str],
        freeze_at: int = 0,
        freeze_routers: bool = False,
        checkpoint_stages: bool = False,
    ) -> None:
        """
        Args:
            stem: the layers before the first stage.
            stages: the graphs of res2, res3, …. Those after the last of ``out_features`` are
                dropped.
            out_features: names of the outputs, out of ``stem``, ``res2``, ….
            freeze_at: number of leading parts to freeze: 1 the stem, 2 also res2, and so on.
            freeze_routers: whether the routers, thresholds and γ of frozen stages are frozen too.
            checkpoint_stages: recompute each graph in the backward pass instead of keeping its
                activations.

        Raises:
            UserError: an unknown name in ``out_features``.
        """
        super().__init__()
        names = [f"res{i}" for i in range(2, len(stages) + 2)]
        unknown = set(out_features) - {"stem", *names}
        if unknown or not out_features:
            raise UserError(
                f"MODEL.RESNETS.OUT_FEATURES {list(out_features)}: choose from {['stem', *names]}"
            )
        last = max((names.index(name) + 1 for name in out_features if name in names), default=0)
        self.stem = stem
        self.stage_names = names[:last]
        self.checkpoint_stages = checkpoint_stages
        self._out_features = list(out_features)
        self._out_feature_channels = {"stem": stem.out_channels}
        self._out_feature_strides = {"stem": stem.stride}
        stride = stem.stride
        for name, graphs in zip(self.stage_names, stages, strict=False):
            self.add_module(name, nn.ModuleList(graphs))
            for graph in graphs:
                stride *= graph.stride
            self._out_feature_channels[name] = graphs[-1].out_channels
            self._out_feature_strides[name] = stride
        self.freeze(freeze_at, routers=freeze_routers)

    def graphs(self, name: str) -> list[DynamicGraph]:
        """The graphs of stage ``name``, in order."""
        return cast(list[DynamicGraph], list(getattr(self, name)))

    def freeze(self, freeze_at: int, *, routers: bool) -> None:
        """Freeze the first ``freeze_at`` parts (1: the stem, 2: also res2, …); their routers only
        if ``routers``."""
        if freeze_at >= 1:
            self.stem.freeze()
        for name in self.stage_names[: max(freeze_at - 1, 0)]:
            for graph in self.graphs(name):
                graph.freeze(routers=routers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: normalised images, [B, 3, H, W], of any H and W, padded with zeros as Detectron2
                does.

        Returns:
            For each name of ``out_features`` its feature map, [B, C, ⌈H / stride⌉, ⌈W / stride⌉].
        """
        valid = valid_sizes(x)
        stride = self.stem.stride
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name in self.stage_names:
            for graph in self.graphs(name):
                stride *= graph.stride
                valid_here = torch.div(valid + stride - 1, stride, rounding_mode="floor")
                if self.checkpoint_stages and self.training:
                    x = checkpoint(graph, x, valid_here, use_reentrant=False)
                else:
                    x = graph(x, valid_here)
            if name in self._out_features:
                outputs[name] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_dgnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DGNet:
    """The :class:`DGNet` that ``MODEL.DGNET`` and ``MODEL.RESNETS`` describe.

    Raises:
        UserError: a value that is not supported, with the key's name.
    """
    dgnet, resnets = cfg.MODEL.DGNET, cfg.MODEL.RESNETS
    for key, choices in (
        ("FAMILY", tuple(FAMILIES)),
        ("WIRING", WIRINGS),
        ("EDGE_WEIGHTS", EDGE_WEIGHTS),
    ):
        if dgnet[key] not in choices:
            raise UserError(f"MODEL.DGNET.{key} {dgnet[key]!r}: choose from {', '.join(choices)}")
    # Without weighted edges there is nothing to wire: the plain network, whose shortcuts are its
    # blocks' own.
    wiring = "residual" if dgnet.EDGE_WEIGHTS == "none" else dgnet.WIRING
    stem, stages = FAMILIES[dgnet.FAMILY](cfg, input_shape.channels, shortcuts=wiring == "residual")
    graphs = [
        [
            DynamicGraph(blocks, wiring=wiring, edge_weights=dgnet.EDGE_WEIGHTS, norm=resnets.NORM)
            for blocks in stage
        ]
        for stage in stages
    ]
    return DGNet(
        stem,
        graphs,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        freeze_routers=dgnet.FREEZE_ROUTERS,
        checkpoint_stages=dgnet.CHECKPOINT_STAGES,
    )


@BACKBONE_REGISTRY.register()
def build_dgnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_dgnet_backbone` under Detectron2's FPN with its max-pooled P6, as ``MODEL.FPN``
    describes."""
    return FPN(
        bottom_up=build_dgnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
