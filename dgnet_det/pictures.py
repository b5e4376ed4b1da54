"""Pictures of what a detector does: the wiring of its graphs, and its detections."""

import os
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .errors import UserError
from .files import written_whole
from .wiring import RecordedWiring

DPI = 110
CELL = 0.42  # inches, of an edge in a small graph
SMALLEST_CELL = 0.16  # inches, in a large one
LARGEST_GRAPH = 4.2  # inches, until cells are the smallest
SHOW_FIGURES_UP_TO = 9  # nodes that a matrix may show for the weights to be written into its cells
CLOSED, CHAIN = "0.86", "0.25"

# Okabe and Ito's colours, which colour-blind people can tell apart, less black, orange first.
CLASS_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
DETECTION_SIDE = 900  # pixels, about, of the longer side of each of the two pictures
LABEL_POINTS = 12  # of the largest boxes' labels; Detectron2 makes those of small boxes smaller


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as the kind of picture that the name's suffix says."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def picture_paths(folder: Path, images: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Where the picture of each image goes: under its name into ``folder``.

    Raises:
        UserError: two images have one name.
    """
    paths = [folder / f"{Path(image).stem}.png" for image in images]
    for image, path in zip(images, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"{image}: another image would also be drawn as {path}: rename one")
    return paths


def largest_weight(wirings: Mapping[str, RecordedWiring]) -> float:
    """The largest absolute weight of a routed edge: the limit of a scale that fits the wiring."""
    return max(float(w.weight[:, w.routed()].abs().max()) for w in wirings.values())


def draw_wiring(
    image: np.ndarray,
    wirings: Mapping[str, RecordedWiring],
    *,
    sample: int = 0,
    limit: float | None = None,
) -> Figure:
    """An image beside the adjacency matrix of every graph: row j holds the edges into node j.

    The colour is the edge's weight, on one scale for all matrices: α from 0 to 1, or, in the
    residual wiring, γ·α around 0. A closed edge is grey and crossed out; the residual wiring's
    fixed chain is marked with a dot; there is nothing where there is no edge.

    Args:
        image: [H, W, 3] RGB, uint8.
        wirings: of one forward pass, by graph, as :func:`record_wiring` gives them.
        sample: the image's place in the batch.
        limit: the largest weight of the residual wiring's scale; default: the largest there is.
    """
    residual = any(wiring.residual for wiring in wirings.values())
    if residual:
        # Before training all γ are 0, and any scale shows that.
        limit = limit or largest_weight(wirings) or 1.0
        colors = ScalarMappable(Normalize(-limit, limit), colormaps["PuOr"])
        label = "weight γ·α"
    else:
        colors = ScalarMappable(Normalize(0, 1), colormaps["viridis"])
        label = "weight α"

    columns = 2 if len(wirings) <= 4 else 4
    rows = ceil(len(wirings) / columns)
    sizes = np.zeros(rows * columns)
    sizes[: len(wirings)] = [_matrix_inches(w.alpha.shape[1] - 1) for w in wirings.values()]
    grid = sizes.reshape(rows, columns)
    widths, heights = grid.max(axis=0) + 0.7, grid.max(axis=1) + 0.9
    height = max(heights.sum(), 3.6)
    image_width = min(max(height * image.shape[1] / image.shape[0], 2.5), 5.0)

    figure = Figure(figsize=(image_width + widths.sum() + 1.1, height + 0.5), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=[image_width, widths.sum() + 1.1])
    left, right = halves
    picture = left.subplots()
    picture.imshow(image)
    picture.set_axis_off()
    panels = right.subplots(
        rows, columns, squeeze=False, width_ratios=widths, height_ratios=heights
    )
    for axes in panels.flat[len(wirings) :]:
        axes.set_axis_off()
    for axes, (name, wiring) in zip(panels.flat, wirings.items(), strict=False):
        _draw_matrix(axes, name, wiring, sample, colors)
    right.colorbar(colors, ax=panels, label=label, shrink=0.8, aspect=30, panchor=False)
    right.legend(handles=_legend(residual), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _matrix_inches(cells: int) -> float:
    return max(min(CELL * cells, LARGEST_GRAPH), SMALLEST_CELL * cells, 3 * CELL)


def _draw_matrix(
    axes: Axes, name: str, wiring: RecordedWiring, sample: int, colors: ScalarMappable
) -> None:
    # The input has no edges in and the output none out: their row and column are left out.
    alpha = wiring.alpha[sample, 1:, :-1].cpu().numpy()
    weight = wiring.weight[sample, 1:, :-1].cpu().numpy()
    routed = wiring.routed()[1:, :-1].cpu().numpy()
    cells = len(alpha)
    cell_points = 72 * _matrix_inches(cells) / cells
    write = cells < SHOW_FIGURES_UP_TO
    decimals = 2 if colors.get_clim()[1] >= 0.1 else 3  # a young γ is small

    for j, i in np.argwhere(np.tri(cells, dtype=bool)):
        value = weight[j, i]
        face: Any = "white"
        if routed[j, i]:
            face = colors.to_rgba(value) if alpha[j, i] else CLOSED
        axes.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=face, edgecolor="0.5", lw=0.5))
        if not routed[j, i]:
            axes.plot(i, j, "o", color=CHAIN, markersize=0.25 * cell_points)
        elif not alpha[j, i]:
            axes.plot(i, j, "x", color="0.35", markersize=0.4 * cell_points)
        elif write:
            dark = np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.5
            sign = "+" if wiring.residual else ""
            text = f"{value:{sign}.{decimals}f}".replace("-", "−")
            axes.text(
                i, j, text, ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )

    labels = ["in", *map(str, range(1, cells)), "out"]
    # As many labels of 7 points as fit; those of the input and the output always.
    sources = range(0, cells, ceil(13 / cell_points))
    targets = range(cells - 1, -1, -ceil(9 / cell_points))
    axes.set_xticks(sources, [labels[i] for i in sources], fontsize=7)
    axes.set_yticks(targets, [labels[j + 1] for j in targets], fontsize=7)
    axes.tick_params(length=0)
    axes.set_xlabel("from node", fontsize=8)
    axes.set_ylabel("to node", fontsize=8)
    axes.set(xlim=(-0.55, cells - 0.45), ylim=(cells - 0.45, -0.55), aspect="equal")
    axes.set_anchor("N")
    axes.spines[:].set_visible(False)
    num_open = int((alpha[routed] != 0).sum())
    axes.set_title(f"{name}: {num_open} of {routed.sum()} open", fontsize=9)


def _legend(residual: bool) -> list[Line2D]:
    def key(marker: str, color: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, color=color, label=label)

    keys = [key("x", "0.35", "closed edge")]
    if residual:
        keys.append(key("o", CHAIN, "fixed chain, weight 1"))
    return keys


def draw_detections(
    image: np.ndarray,
    detections: Instances,
    annotations: Sequence[Mapping[str, Any]],
    metadata: Metadata,
    *,
    threshold: float,
) -> Figure:
    """Detections beside the ground truth of one image, with class names and scores.

    Args:
        image: [H, W, 3] RGB, uint8.
        detections: of the image at this size, with ``pred_boxes``, ``pred_classes``, ``scores``.
        annotations: in Detectron2's dataset format.
        metadata: of the dataset; ``thing_classes`` are the names.
        threshold: the lowest score that is drawn.
    """
    detections = detections[detections.scores >= threshold].to("cpu")
    found = _draw_boxes(
        image,
        detections.pred_boxes.tensor.numpy(),
        detections.pred_classes.tolist(),
        [f" {score:.0%}" for score in detections.scores.tolist()],
        metadata,
    )
    truth = _draw_boxes(
        image,
        np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        ).reshape(-1, 4),
        [a["category_id"] for a in annotations],
        [" (crowd)" if a.get("iscrowd") else "" for a in annotations],
        metadata,
    )
    inches = np.array([found.shape[1], found.shape[0]]) / DPI
    figure = Figure(figsize=(2 * inches[0] + 0.3, inches[1] + 0.4), layout="constrained")
    titles = (
        f"detections of score ≥ {threshold:g}: {len(detections)}",
        f"ground truth: {len(annotations)}",
    )
    for axes, picture, title in zip(figure.subplots(1, 2), (found, truth), titles, strict=True):
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(title, fontsize=12)
    return figure


def _draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    notes: Sequence[str],
    metadata: Metadata,
) -> np.ndarray:
    scale = DETECTION_SIDE / max(image.shape[:2])
    visualizer = Visualizer(image, metadata, scale=scale)
    # Its own choice is for large images, and hard to read on small ones.
    visualizer._default_font_size = LABEL_POINTS / scale
    drawn: VisImage = visualizer.overlay_instances(
        boxes=boxes,
        labels=[metadata.thing_classes[c] + n for c, n in zip(classes, notes, strict=True)],
        assigned_colors=[CLASS_COLORS[c % len(CLASS_COLORS)] for c in classes],
    )
    return drawn.get_image()
