"""Multiply-adds, activations, parameters and structure of a model, and what closed edges save.
Sizes are (height, width)."""

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from dgnet_det.config import is_classifier
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.modeling.backbone.base import StagedBackbone
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.classifier import DGNetClassifier, build_classifier
from dgnet_det.modeling.costs import branch_counts, stage_sizes
from dgnet_det.modeling.counting import Counts, operator_counts, symbolic_counts
from dgnet_det.modeling.observation import dgnet_of, record_decisions, routed_stages


class ImageCounts(NamedTuple):
    """The backbone on one image of ``size``, padding included."""

    size: tuple[int, int]
    ran: Counts
    all_open: Counts


def build_for_analysis(cfg: CfgNode) -> nn.Module:
    """Build the detector or classifier of a config, untrained. Nothing is frozen: freezing would
    turn a BN's parameters into buffers."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return (build_classifier if is_classifier(cfg) else build_model)(cfg).eval()


def backbone_counts(backbone: StagedBackbone, size: tuple[int, int]) -> Counts:
    """Counts of ``backbone`` on one image of ``size`` with all edges open, or with the dearest
    branches of routed stages. Nothing is computed."""
    if paths := path_counts(backbone, size):
        return paths["dearest"]
    counts = symbolic_counts(backbone, backbone.stem.in_channels, size)[""]
    return counts.plus_macs(weighted_sums(backbone, size))


def path_counts(backbone: StagedBackbone, size: tuple[int, int]) -> dict[str, Counts]:
    """Counts of routed stages with the ``cheapest`` and the ``dearest`` branch of every connection,
    and their ``mean`` over the branches; routers included. Empty without choices."""
    if not any(stage.connections for stage in routed_stages(backbone).values()):
        return {}
    found = symbolic_counts(backbone, backbone.stem.in_channels, size)
    paths = {name: np.zeros(len(Counts._fields)) for name in ("cheapest", "mean", "dearest")}
    whole = np.array(found[""])
    for branches in branch_counts(backbone, found).values():
        rows = np.array(list(branches.values()))
        macs = rows[:, Counts._fields.index("macs")]
        whole = whole - rows.sum(axis=0)
        paths["cheapest"] += rows[macs.argmin()]
        paths["mean"] += rows.mean(axis=0)
        paths["dearest"] += rows[macs.argmax()]
    return {n: Counts(*(whole + path).round().astype(int).tolist()) for n, path in paths.items()}


@torch.no_grad()
def model_counts(model: nn.Module, size: tuple[int, int]) -> dict[str, Counts]:
    """Counts of a model on one image of random pixels.

    Args:
        model: in evaluation mode; its routers are untrained, so that all edges are open.
        size: of the image before padding.

    Returns:
        Counts by part: ``backbone`` (without FPN), ``fpn`` where there is one, the other parts by
        the names that the model gives them, and ``total``.
    """
    backbone = dgnet_of(model)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(
        0, 256, (backbone.stem.in_channels, *size), dtype=torch.uint8, generator=generator
    )
    device = next(model.parameters()).device
    inputs = image[None].to(device) if isinstance(model, DGNetClassifier) else [{"image": image}]
    padded: list[tuple[int, int]] = []
    with backbone.register_forward_pre_hook(lambda _, args: padded.append(args[0].shape[2:])):
        found = operator_counts(model, inputs)

    parts = {name: found[name] for name, _ in model.named_children() if name in found}
    if model.backbone is not backbone:
        with_fpn, bottom_up = parts.pop("backbone"), found["backbone.bottom_up"]
        fpn = Counts(*(a - b for a, b in zip(with_fpn, bottom_up, strict=True)))
        parts = {"backbone": bottom_up, "fpn": fpn, **parts}
    sums = weighted_sums(backbone, padded[0])
    parts["backbone"] = parts["backbone"].plus_macs(sums)
    parts["total"] = found[""].plus_macs(sums)
    return parts


class ImageCounter:
    """Counts what a detector's backbone runs on images, without closed edges and absent nodes."""

    def __init__(self, model: nn.Module) -> None:
        """``model`` is in evaluation mode."""
        self.model = model
        self._all_open: dict[tuple[int, int], Counts] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor) -> ImageCounts:
        """Counts on one image, [C, H, W], pixels 0..255 in the model's channel order."""
        backbone = dgnet_of(self.model)
        batch = self.model.preprocess_image([{"image": image}]).tensor  # type: ignore[operator]
        size = batch.shape[2], batch.shape[3]
        if size not in self._all_open:
            self._all_open[size] = backbone_counts(backbone, size)
        # Without gradients, a prepared graph's sums are matrix products and would be counted twice.
        with record_decisions(backbone) as edge_weights, torch.enable_grad():
            ran = operator_counts(backbone, batch)[""]
        opened = {name: w.learned & w.weight[0].ne(0) for name, w in edge_weights.items()}
        ran = ran.plus_macs(weighted_sums(backbone, size, opened))
        return ImageCounts(size, ran, self._all_open[size])


def weighted_sums(
    backbone: StagedBackbone, size: tuple[int, int], edges: Mapping[str, Tensor] | None = None
) -> int:
    """Multiply-adds of the weighted sums of Eq. 3 for one image of ``size``: one per element and
    edge. ``edges`` tells by graph which edges are open, [N, N] with i → j at [j, i]; default: all.
    """
    total = 0
    for name, (stage, in_size, out_size) in stage_sizes(backbone, size).items():
        if isinstance(stage, DynamicGraph):
            # Edge 0 → 1 carries the raw input; every other edge a tensor of the output's shape.
            opened = stage.edges if edges is None else edges[name]
            raw = int(opened[1, 0])
            others = int(opened.sum()) - raw
            total += raw * stage.in_channels * prod(in_size)
            total += others * stage.out_channels * prod(out_size)
    return total


def structure(backbone: StagedBackbone, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The stages of ``backbone`` for JSON, for an image of ``size``. ``edges`` are all edges of a
    stage, ``routed_edges`` those that routers weigh."""
    rows = []
    for name, (stage, _, out_size) in stage_sizes(backbone, size).items():
        blocks = len(stage.nodes)
        edges = int(stage.edges.sum()) if isinstance(stage, DynamicGraph) else 0
        complete = (blocks + 2) * (blocks + 1) // 2
        rows.append(
            {
                "name": name,
                "blocks": blocks,
                "nodes": blocks + 2,
                "edges": complete if edges else blocks + 1,
                "routed_edges": edges,
                "in_channels": stage.in_channels,
                "out_channels": stage.out_channels,
                "stride": stage.stride,
                "output_size": out_size,
            }
        )
    return rows
