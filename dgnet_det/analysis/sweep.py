"""What closing edges costs and saves: AP, multiply-adds and latency at a row of thresholds."""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from detectron2.config import CfgNode
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from dgnet_det.analysis.counts import backbone_of, image_counts
from dgnet_det.engine.trainer import Trainer
from dgnet_det.evaluation.coco import Evaluator
from dgnet_det.graph.routing import EdgeWeights
from dgnet_det.modeling.observation import dynamic_graphs, record_edge_weights

Result = TypeVar("Result")

# Shares of the measured edge weights that are closed where no thresholds are given.
SHARES = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
# Okabe and Ito's, less yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class Point(NamedTuple):
    """A detector at one threshold, over the images of a dataset, each alone."""

    threshold: float  # every τ is raised to it
    ap: float  # per cent
    ap50: float
    open_edges: float  # share of the routed edges
    absent_nodes: float  # share of the blocks
    macs: float  # multiply-adds that the backbone ran, mean
    backbone_seconds: float  # median
    detector_seconds: float  # median


def timed(
    device: torch.device, function: Callable[..., Result], *args: Any
) -> tuple[Result, float]:
    """What ``function`` returns for ``args``, and the seconds that it took on ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function(*args)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


@torch.no_grad()
def thresholds_for(shares: Sequence[float], model: nn.Module, cfg: CfgNode) -> list[float]:
    """Thresholds below which those shares of all α lie, over the edges that are open for the images
    of ``DATASETS.TEST[0]``.

    Args:
        shares: from 0 to 1. 0 leaves the model as it is, 1 closes every edge.
        model: in evaluation mode.
        cfg: its config.
    """
    weights = []
    with record_edge_weights(model) as wirings:
        for inputs in _loader(cfg):
            model(inputs)
            weights += [w.alpha[:, w.edges].flatten() for w in wirings.values()]
    alpha = torch.cat(weights).double().cpu()
    alpha = alpha[alpha > 0]
    return [float(alpha.quantile(share)) if 0 < share < 1 else float(share) for share in shares]


@torch.no_grad()
def sweep(
    model: nn.Module, cfg: CfgNode, thresholds: Sequence[float], *, repeats: int
) -> list[Point]:
    """Evaluate a detector at each of ``thresholds``, on ``DATASETS.TEST[0]``.

    The thresholds take turns on every image, so that a drift of the machine's speed meets all.

    Args:
        model: in evaluation mode. It is left as it was.
        cfg: its config.
        thresholds: every τ is raised to them.
        repeats: how often each image is timed. Its fastest run counts.
    """
    graphs, backbone = dynamic_graphs(model), backbone_of(model)
    learned = {name: graph.thresholds.detach().clone() for name, graph in graphs.items()}
    device = next(model.parameters()).device
    measured: list[list[dict[str, float]]] = [[] for _ in thresholds]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        evaluators = [Evaluator(cfg.DATASETS.TEST[0], folder) for _ in thresholds]
        for evaluator in evaluators:
            evaluator.reset()
        for inputs in tqdm(_loader(cfg), desc="images", unit="image"):
            batch = model.preprocess_image(inputs).tensor  # type: ignore[operator]
            for _ in range(2):  # the first runs at a size are slower
                model(inputs)
            for threshold, evaluator, rows in zip(thresholds, evaluators, measured, strict=True):
                for name, graph in graphs.items():
                    graph.thresholds.data = learned[name].clamp(min=threshold)
                seconds = []
                with record_edge_weights(model) as wirings:
                    for _ in range(repeats):
                        _, in_backbone = timed(device, backbone, batch)
                        detections, in_all = timed(device, model, inputs)
                        seconds.append((in_backbone, in_all))
                    shares = _shares(wirings)
                evaluator.process(inputs, detections)
                fastest = [min(column) for column in zip(*seconds, strict=True)]
                rows.append(
                    {
                        **shares,
                        "macs": image_counts(model, inputs[0]["image"]).ran.macs,
                        "backbone_seconds": fastest[0],
                        "detector_seconds": fastest[1],
                    }
                )
        boxes = [evaluator.evaluate()["bbox"] for evaluator in evaluators]
    for name, graph in graphs.items():
        graph.thresholds.data = learned[name]
    return [
        _point(threshold, ap, rows)
        for threshold, ap, rows in zip(thresholds, boxes, measured, strict=True)
    ]


def draw_sweeps(sweeps: Mapping[str, Sequence[Point]], dataset: str) -> Figure:
    """AP against multiply-adds and against latency, a line for each detector. Numbers on the left
    say what share of the edges is open; the ring is the detector as it was trained."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for color, (name, points) in zip(COLORS, sweeps.items(), strict=False):
        _draw_line(left, name, points, [p.macs / 1e6 for p in points], color)
        _draw_line(right, name, points, [p.backbone_seconds * 1e3 for p in points], color)
        _write_shares(left, points, [p.macs / 1e6 for p in points], color)
    left.set_ylabel(f"box AP on {dataset}, %")
    left.set_xlabel("multiply-adds that the backbone ran, million per image (mean)")
    right.set_xlabel("backbone, ms per image (median)")
    left.legend(frameon=False)
    return figure


def _draw_line(
    axes: Axes, name: str, points: Sequence[Point], x: Sequence[float], color: str
) -> None:
    axes.plot(x, [p.ap for p in points], "-o", color=color, markersize=4, lw=1.2, label=name)
    first = min(range(len(points)), key=lambda k: points[k].threshold)
    axes.plot(x[first], points[first].ap, "o", color=color, markersize=11, fillstyle="none")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _write_shares(axes: Axes, points: Sequence[Point], x: Sequence[float], color: str) -> None:
    """Every second point's share of open edges, and the last one's: neighbours lie close."""
    for k, (value, point) in enumerate(zip(x, points, strict=True)):
        if k % 2 == 0 or k == len(points) - 1:
            axes.annotate(
                f"{point.open_edges:.0%}",
                (value, point.ap),
                xytext=(5, 6),
                textcoords="offset points",
                fontsize=7,
                color=color,
            )


def _loader(cfg: CfgNode) -> Any:
    return Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])


def _shares(wirings: Mapping[str, EdgeWeights]) -> dict[str, float]:
    """Of edges that are open and of nodes that are absent, for one image."""
    opened = torch.cat([w.alpha[0, w.edges].ne(0) for w in wirings.values()])
    absent = torch.cat([w.alpha[0, 1:-1].eq(0).all(dim=1) for w in wirings.values()])
    return {
        "open_edges": opened.double().mean().item(),
        "absent_nodes": absent.double().mean().item(),
    }


def _point(threshold: float, boxes: dict[str, float], rows: list[dict[str, float]]) -> Point:
    def column(key: str) -> list[float]:
        return [row[key] for row in rows]

    return Point(
        threshold=threshold,
        ap=boxes["AP"],
        ap50=boxes["AP50"],
        open_edges=statistics.fmean(column("open_edges")),
        absent_nodes=statistics.fmean(column("absent_nodes")),
        macs=statistics.fmean(column("macs")),
        backbone_seconds=statistics.median(column("backbone_seconds")),
        detector_seconds=statistics.median(column("detector_seconds")),
    )
