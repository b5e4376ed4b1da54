"""What closing edges costs and saves: AP, multiply-adds and latency at a row of thresholds."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from dgnet_det.analysis.benchmark import median_and_range, run_and_time
from dgnet_det.analysis.counts import ImageCounter
from dgnet_det.errors import UserError
from dgnet_det.evaluation.coco import Evaluator, build_image_loader
from dgnet_det.graph.routing import EdgeWeights
from dgnet_det.modeling.observation import dgnet_of, dynamic_graphs, record_edge_weights

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
    backbone: dict[str, float]  # latency, as latencies_of() gives it
    detector: dict[str, float]


@torch.no_grad()
def thresholds_for(shares: Sequence[float], model: nn.Module, cfg: CfgNode) -> list[float]:
    """Thresholds below which those shares of all α lie, over the edges that are open for the images
    of ``DATASETS.TEST[0]``. The model is in evaluation mode; a share of 0 leaves it as it is, 1
    closes every edge."""
    weights = []
    with record_edge_weights(model) as recorded:
        for inputs in build_image_loader(cfg, DatasetCatalog.get(cfg.DATASETS.TEST[0])):
            model(inputs)
            weights += [w.alpha[:, w.edges].flatten() for w in recorded.values()]
    alpha = torch.cat(weights).double().cpu()
    alpha = alpha[alpha > 0]
    return [float(alpha.quantile(share)) if 0 < share < 1 else float(share) for share in shares]


@torch.no_grad()
def sweep(
    model: nn.Module, cfg: CfgNode, thresholds: Sequence[float], *, repeats: int
) -> list[Point]:
    """Evaluate a detector at each of ``thresholds``, on ``DATASETS.TEST[0]``.

    On every image the thresholds take turns, so that a drift of the machine's speed meets all.

    Args:
        model: in evaluation mode. It is left as it was.
        cfg: its config.
        thresholds: every τ is raised to them.
        repeats: how often each image is timed at each threshold.

    Raises:
        UserError: the dataset has no annotations.
    """
    graphs = dynamic_graphs(model)
    learned = {name: graph.thresholds.detach().clone() for name, graph in graphs.items()}

    def raise_thresholds(to: float) -> None:
        for name, graph in graphs.items():
            graph.thresholds.data = learned[name].clamp(min=to)

    backbone, device = dgnet_of(model), next(model.parameters()).device
    count = ImageCounter(model)
    evaluators = [Evaluator(cfg.DATASETS.TEST[0]) for _ in thresholds]
    if "annotations" not in evaluators[0].truth.dataset:
        raise UserError(f"DATASETS.TEST {cfg.DATASETS.TEST[0]}: it has no annotations to compare")
    for evaluator in evaluators:
        evaluator.reset()
    shares: list[list[tuple[float, float, int]]] = []  # per image and threshold
    seconds: list[list[list[tuple[float, float]]]] = []  # per image, repeat and threshold
    images = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    for inputs in tqdm(build_image_loader(cfg, images), desc="images", unit="image"):
        shares.append([])
        for threshold, evaluator in zip(thresholds, evaluators, strict=True):
            raise_thresholds(threshold)
            with record_edge_weights(model) as recorded:
                evaluator.process(inputs, model(inputs))
            macs = count(inputs[0]["image"]).ran.macs
            shares[-1].append((*_open_and_absent(recorded), macs))
        batch = model.preprocess_image(inputs).tensor  # type: ignore[operator]
        seconds.append([])
        for _ in range(repeats):
            seconds[-1].append([])
            for threshold in thresholds:
                raise_thresholds(threshold)
                _, in_backbone = run_and_time(device, backbone, batch)
                _, in_all = run_and_time(device, model, inputs)
                seconds[-1][-1].append((in_backbone, in_all))
    raise_thresholds(-torch.inf)

    means = np.mean(shares, axis=0)
    latencies = [latencies_of(part) for part in np.moveaxis(np.array(seconds), -1, 0)]
    points = []
    for k, (threshold, evaluator) in enumerate(zip(thresholds, evaluators, strict=True)):
        with contextlib.redirect_stdout(io.StringIO()):
            boxes = evaluator.evaluate()["bbox"]
        figures = (boxes["AP"], boxes["AP50"], *map(float, means[k]))
        points.append(Point(threshold, *figures, *(of_part[k] for of_part in latencies)))
    return points


def draw_sweeps(sweeps: Mapping[str, Sequence[Point]], dataset: str) -> Figure:
    """AP against multiply-adds and against latency, a line for each detector by its name. Numbers
    on the left say what share of the edges is open; bars on the right are the range of the repeats.
    ``dataset`` is the name, or the file, of what they were evaluated on."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for color, (name, points) in zip(COLORS, sweeps.items(), strict=False):
        ap = [point.ap for point in points]
        macs = [point.macs / 1e6 for point in points]
        left.plot(macs, ap, "-o", color=color, label=name)
        for x, point in zip(macs, points, strict=True):
            left.annotate(f"{point.open_edges:.0%}", (x, point.ap), color=color, fontsize=7)
        seconds = [list(point.backbone.values()) for point in points]
        median, low, high = 1e3 * np.array(seconds).T
        right.errorbar(median, ap, xerr=(median - low, high - median), fmt="-o", color=color)
    for axes in (left, right):
        axes.grid(color="0.92")
    left.set_ylabel(f"box AP on {Path(dataset).name}, %")
    left.set_xlabel("multiply-adds that the backbone ran, million per image (mean)")
    right.set_xlabel("backbone, ms per image (median and range of paired runs)")
    left.legend(frameon=False)
    return figure


def _open_and_absent(recorded: Mapping[str, EdgeWeights]) -> tuple[float, float]:
    """The shares of the routed edges that are open and of the blocks that are absent, in one
    image."""
    opened = torch.cat([w.alpha[0, w.edges].ne(0) for w in recorded.values()])
    absent = torch.cat([w.absent()[0, 1:-1] for w in recorded.values()])
    return opened.double().mean().item(), absent.double().mean().item()


def latencies_of(seconds: np.ndarray) -> list[dict[str, float]]:
    """Seconds per image at each threshold, as ``median``, ``min`` and ``max`` over the repeats:
    those of the first threshold, median of all runs, times the ratio of runs that were made side by
    side, median over the images. ``seconds`` is [images, repeats, thresholds]."""
    ratios = np.median(seconds / seconds[:, :, :1], axis=0)  # [repeats, thresholds]
    scaled = ratios * np.median(seconds[:, :, 0])
    return [median_and_range(of_threshold.tolist()) for of_threshold in scaled.T]
