"""Edges that stay closed for every image, or branches that no image takes, taken out of a detector
for good."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from dgnet_det.config import is_routed
from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import Predictor, compare_detections, same_detections
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.graph.topology import edge_name
from dgnet_det.modeling.backbone.drnet import branch_name
from dgnet_det.modeling.observation import (
    dynamic_graphs,
    record_choices,
    record_edge_weights,
    routed_stages,
)

# Largest difference of a feature map, in units of its largest value, that rounding makes.
ROUNDING = 1e-4


def raise_thresholds(model: nn.Module, threshold: float) -> None:
    """Raise every τ of ``model`` that is lower to ``threshold``.

    Raises:
        UserError: it would close no edge for any image, or all of them.
    """
    if not 0 < threshold < 1:
        raise UserError(f"a threshold of {threshold:g}: α lies between 0 and 1, and so must it")
    for graph in dynamic_graphs(model).values():
        graph.thresholds.data.clamp_(min=threshold)


@torch.no_grad()
def find_closed_edges(model: nn.Module, images: Iterable[Tensor]) -> list[str]:
    """The edges that are closed for every one of some images, named as by :func:`edge_name`. The
    images are those of :meth:`Detector.prepare`, and the model in evaluation mode."""
    closed: dict[str, Tensor] = {}
    with record_edge_weights(model) as edge_weights:
        for image in images:
            model([{"image": image}])
            for name, weights in edge_weights.items():
                here = weights.edges & weights.alpha.eq(0).all(dim=0)
                closed[name] = here & closed.get(name, here)
    return [
        edge_name(name, (i, j)) for name, mask in closed.items() for j, i in mask.nonzero().tolist()
    ]


def find_unused_branches(model: nn.Module, images: Iterable[Tensor]) -> list[str]:
    """The branches that none of some images takes, named as by :func:`branch_name`. Arguments are
    those of :func:`find_closed_edges`."""
    counts = count_branches(model, ([{"image": image}] for image in images))
    return [branch_name(*key) for key, count in counts.items() if not count]


@torch.no_grad()
def count_branches(model: nn.Module, batches: Iterable[Any]) -> dict[tuple[str, int, str], int]:
    """How many of the images in ``batches``, each as the model takes it, take a branch, by stage,
    connection and name, of the connections that have a choice. The model is in evaluation mode."""
    counts: dict[str, Tensor] = {}
    with record_choices(model) as choices:
        for batch in batches:
            model(batch)
            for name, of_stage in choices.items():
                counts[name] = counts.get(name, 0) + of_stage.gate.sum(dim=0)
    stages = routed_stages(model)
    return {
        (name, j, branch): int(row[stages[name].columns.index(branch)])
        for name, rows in counts.items()
        for j, row in zip(map(int, stages[name].routers), rows, strict=True)
        for branch in stages[name].branches[j]
    }


def prune_config(cfg: CfgNode, names: Iterable[str]) -> CfgNode:
    """The config of the same detector without the edges, or branches, ``names``.

    It has no sparsity or budget loss: a share of what is left is another budget.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if is_routed(cfg):
        cfg.MODEL.DRNET.PRUNED_BRANCHES = [*cfg.MODEL.DRNET.PRUNED_BRANCHES, *names]
        cfg.MODEL.DRNET.BUDGET_WEIGHT = 0.0
    else:
        cfg.MODEL.DGNET.PRUNED_EDGES = [*cfg.MODEL.DGNET.PRUNED_EDGES, *names]
        cfg.MODEL.DGNET.SPARSITY_WEIGHT = 0.0
    return cfg


def load_pruned(pruned: nn.Module, model: nn.Module) -> None:
    """Give a model that was built from :func:`prune_config` the tensors that it has left of the
    ``model`` before."""
    state = model.state_dict()
    graphs, stages = _named(model, DynamicGraph), _named(model, RoutedStage)
    kept = {
        name: tensor if name.endswith(".pruned") else state[name]
        for name, tensor in pruned.state_dict().items()
    }
    for prefix, graph in _named(pruned, DynamicGraph).items():
        before = graphs[prefix].targets
        for i, nodes in graph.targets.items():
            rows = [before[i].index(j) for j in nodes]
            router, gamma = f"{prefix}.routers.{i}.", f"{prefix}.gammas.{i}"
            for name in kept:
                if name.startswith(router) or name == gamma:
                    kept[name] = state[name][rows]
        tau = f"{prefix}.thresholds"
        kept[tau] = state[tau][[list(before).index(i) for i in graph.targets]]
    for prefix, stage in _named(pruned, RoutedStage).items():
        for j in stage.routers:
            rows = [stages[prefix].branches[int(j)].index(n) for n in stage.branches[int(j)]]
            for tensor in ("weight", "bias"):
                name = f"{prefix}.routers.{j}.linear.{tensor}"
                kept[name] = state[name][rows]
    pruned.load_state_dict(kept)


@torch.no_grad()
def check_equal(before: Predictor, after: Predictor, image: np.ndarray, file: Path) -> float:
    """Check that a pruned detector sees the same in an image, [H, W, 3] uint8 BGR from ``file``, as
    before, to rounding.

    Returns:
        The largest difference between feature maps of the backbones, each in units of the map's
        largest value.

    Raises:
        UserError: features or detections differ.
    """
    inputs = [{"image": before.prepare(image)}]
    expected, found = (
        p.model.backbone(p.model.preprocess_image(inputs).tensor)  # type: ignore[operator]
        for p in (before, after)
    )
    difference = max(
        float((found[name] - x).abs().max() / x.abs().max().clamp(min=1e-12))
        for name, x in expected.items()
    )
    if difference > ROUNDING or not same_detections([compare_detections(before, after, image)]):
        raise UserError(
            f"{file}: the pruned detector finds something else (its features differ by"
            f" {difference:.1e} of their largest value): nothing was written"
        )
    return difference


def _named(model: nn.Module, kind: Any) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, kind)}
