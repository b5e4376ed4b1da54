"""Edges that stay closed for every image, taken out of a detector for good."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from dgnet_det.analysis.benchmark import run_and_time
from dgnet_det.analysis.counts import ImageCounter, ImageCounts, structure
from dgnet_det.data import read_image
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import Predictor, detector_of
from dgnet_det.export.tracing import compare, fits
from dgnet_det.graph.routing import EdgeWeights
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.graph.topology import edge_name
from dgnet_det.modeling.observation import dgnet_of, dynamic_graphs, record_edge_weights

# Largest difference of a feature map, in units of its largest value, that rounding makes.
ROUNDING = 1e-4
REPEATS = 3  # timed runs of each image


def raise_thresholds(model: nn.Module, threshold: float) -> None:
    """Raise every τ of ``model`` that is lower to ``threshold``."""
    for graph in dynamic_graphs(model).values():
        graph.thresholds.data.clamp_(min=threshold)


class OpenEdges(NamedTuple):
    """What was open for at least one of some images, by graph. Masks [N, N], row j for the edges
    into node j."""

    routed: dict[str, Tensor]  # the edges that routers weigh
    open: dict[str, Tensor]

    def closed(self) -> list[str]:
        """The names of the other edges."""
        return [
            edge_name(name, (i, j))
            for name, routed in self.routed.items()
            for j, i in (routed & ~self.open[name]).nonzero().tolist()
        ]


@torch.no_grad()
def measure_open_edges(model: nn.Module, images: Iterable[Tensor]) -> OpenEdges:
    """Run a detector on images and see which edges open.

    Args:
        model: a detector in evaluation mode, with edge weights.
        images: each [3, H, W], resized, in the model's ``INPUT.FORMAT``.

    Raises:
        UserError: there are no images.
    """
    measured = OpenEdges({}, {})
    with record_edge_weights(model) as wirings:
        for image in images:
            model([{"image": image}])
            for name, wiring in wirings.items():
                opened = _open_edges(wiring)
                measured.routed[name] = wiring.edges.cpu()
                measured.open[name] = opened | measured.open.get(name, opened)
    if not measured.open:
        raise UserError("no images to measure the edges on: name some")
    return measured


def prune_config(cfg: CfgNode, edges: Iterable[str]) -> CfgNode:
    """The config of the same detector without ``edges``, named as by :func:`edge_name`.

    It has no sparsity loss: a share of the edges that are left is another budget.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DGNET.PRUNED_EDGES = [*cfg.MODEL.DGNET.PRUNED_EDGES, *edges]
    cfg.MODEL.DGNET.SPARSITY_WEIGHT = 0.0
    return cfg


def load_pruned(pruned: nn.Module, model: nn.Module) -> None:
    """Give a pruned model the tensors that it has left of ``model``.

    Args:
        pruned: built from :func:`prune_config`.
        model: built from the config before.
    """
    state, graphs = model.state_dict(), _graphs(model)
    kept = {name: state.get(name, tensor) for name, tensor in pruned.state_dict().items()}
    for prefix, graph in _graphs(pruned).items():
        before = graphs[prefix].targets
        for i, nodes in graph.targets.items():
            rows = [before[i].index(j) for j in nodes]
            router, gamma = f"{prefix}.routers.{i}.", f"{prefix}.gammas.{i}"
            for name in kept:
                if name.startswith(router) or name == gamma:
                    kept[name] = state[name][rows]
        if graph.targets:
            tau = f"{prefix}.thresholds"
            kept[tau] = state[tau][[list(before).index(i) for i in graph.targets]]
    pruned.load_state_dict(kept)


class Figures(NamedTuple):
    """Of a backbone, without FPN."""

    edges: int  # those that routers weigh
    blocks: int
    params: int
    all_open_macs: float  # multiply-adds with all edges open, mean over the images
    macs: float  # multiply-adds that ran, mean over the images
    seconds: float  # median over the images, each the fastest of REPEATS runs


class PruningComparison(NamedTuple):
    """A detector and what is left of it, on the same images."""

    before: Figures
    after: Figures
    # The largest difference between feature maps, in units of the map's largest value.
    difference: float


@torch.no_grad()
def compare_detectors(
    before: Predictor, after: Predictor, files: Iterable[Path]
) -> PruningComparison:
    """Run a detector and a pruned one on images, one at a time, and take their figures.

    Args:
        before, after: the detectors. :func:`optimize_for_inference` is done to them.
        files: the images.

    Raises:
        UserError: features or detections differ by more than rounding.
    """
    models = before.model, after.model
    params = [sum(p.numel() for p in dgnet_of(model).parameters()) for model in models]
    detectors = detector_of(before), detector_of(after)
    counts: list[list[ImageCounts]] = [[], []]
    seconds: list[list[float]] = [[], []]
    difference = 0.0
    for file in files:
        pixels = read_image(file, "BGR")
        image = detectors[0].prepare(pixels)
        batch = before.model.preprocess_image([{"image": image}]).tensor
        features: list[dict[str, Tensor]] = [{}, {}]
        runs: list[list[float]] = [[], []]
        for _ in range(1 + REPEATS):  # the first runs at a size are slower
            for k, model in enumerate(models):
                backbone = cast(nn.Module, dgnet_of(model))
                features[k], taken = run_and_time(batch.device, backbone, batch)
                runs[k].append(taken)
        difference = max(difference, _difference(*features))
        if difference > ROUNDING or not fits([compare(*detectors, pixels)]):
            raise UserError(
                f"{file}: the pruned detector finds something else (its features differ by"
                f" {difference:.1e} of their largest value): nothing was written"
            )
        for k, model in enumerate(models):
            counts[k].append(ImageCounter(model)(image))
            seconds[k].append(min(runs[k][1:]))
    figures = [_figures(*of_one) for of_one in zip(models, params, counts, seconds, strict=True)]
    return PruningComparison(figures[0], figures[1], difference)


def _difference(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    return max(
        float((after[name] - x).abs().max() / x.abs().max().clamp(min=1e-12))
        for name, x in before.items()
    )


def _figures(
    model: nn.Module, params: int, counts: list[ImageCounts], seconds: list[float]
) -> Figures:
    graphs = structure(dgnet_of(model), counts[0].size)
    return Figures(
        edges=sum(graph.routed_edges for graph in graphs),
        blocks=sum(graph.blocks for graph in graphs),
        params=params,
        all_open_macs=statistics.fmean(count.all_open.macs for count in counts),
        macs=statistics.fmean(count.ran.macs for count in counts),
        seconds=statistics.median(seconds),
    )


def _open_edges(wiring: EdgeWeights) -> Tensor:
    return wiring.alpha.ne(0).any(dim=0).cpu()


def _graphs(model: nn.Module) -> dict[str, DynamicGraph]:
    return {name: m for name, m in model.named_modules() if isinstance(m, DynamicGraph)}
