"""Pictures of detections, and how pictures become files and pixels."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dgnet_det.errors import UserError
from dgnet_det.export.predictor import Detections
from dgnet_det.utils.files import written_whole

DPI = 110

# Okabe and Ito's colours, which colour-blind people can tell apart, less black, orange first.
CLASS_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
SIDE = 900  # pixels, of the longer side of a picture that is not as large as its image
LABEL_POINTS = 12  # of the largest boxes' labels; Detectron2 makes those of small boxes smaller


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as the kind of picture that the name's suffix says."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def figure_pixels(figure: Figure) -> np.ndarray:
    """A figure as an image, [H, W, 3] RGB, uint8."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def picture_paths(
    folder: Path, images: Sequence[str | os.PathLike[str]], suffixes: Mapping[str, str] = {}
) -> list[Path]:
    """Where the picture of each image goes: under its name into ``folder``.

    Args:
        folder: the folder.
        images: the files that are drawn.
        suffixes: of the pictures, by the suffix of the file, where they are not ``.png``.

    Raises:
        UserError: two files have one name, or a picture would take the place of its image.
    """
    files = [Path(image) for image in images]
    paths = [folder / f"{f.stem}{suffixes.get(f.suffix.lower(), '.png')}" for f in files]
    sources, seen = {file.resolve() for file in files}, set()
    for file, path in zip(files, paths, strict=True):
        if path in seen:
            raise UserError(f"{file}: another file would also be drawn as {path}: rename one")
        if path.resolve() in sources:
            raise UserError(f"{path}: a picture would overwrite this image: name another folder")
        seen.add(path)
    return paths


def draw_detections(
    image: np.ndarray,
    detections: Detections,
    metadata: Metadata | None = None,
    *,
    side: int | None = None,
) -> np.ndarray:
    """An image with the detections in it: boxes with class names and scores, masks and keypoints
    where there are any.

    Args:
        image: [H, W, 3] RGB, uint8.
        detections: of the image.
        metadata: of the dataset that says which keypoints a line connects.
        side: pixels of the picture's longer side; default: the image's own, and :data:`SIDE` where
            that would leave too few for labels.

    Returns:
        [H', W', 3] RGB, uint8.
    """
    labels = [
        f"{name} {score:.0%}"
        for name, score in zip(detections.class_names, detections.scores, strict=True)
    ]
    return _draw_boxes(
        image,
        detections.boxes,
        detections.classes.tolist(),
        labels,
        side or max(SIDE, *image.shape[:2]),
        metadata,
        masks=None if detections.masks is None else list(detections.masks),
        keypoints=detections.keypoints,
    )


def draw_beside_truth(
    image: np.ndarray,
    detections: Detections,
    annotations: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    threshold: float,
) -> Figure:
    """Detections beside the ground truth of one image.

    Args:
        image: [H, W, 3] RGB, uint8.
        detections: of the image.
        annotations: in Detectron2's dataset format.
        class_names: of the annotations.
        threshold: what their scores are above, for the title.
    """
    found = draw_detections(image, detections, side=SIDE)
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    classes = [a["category_id"] for a in annotations]
    truth = _draw_boxes(
        image,
        np.array(boxes).reshape(-1, 4),
        classes,
        [
            class_names[k] + (" (crowd)" if a.get("iscrowd") else "")
            for k, a in zip(classes, annotations, strict=True)
        ],
        SIDE,
    )
    inches = np.array([found.shape[1], found.shape[0]]) / DPI
    figure = Figure(figsize=(2 * inches[0] + 0.3, inches[1] + 0.4), layout="constrained")
    titles = (
        f"detections of score > {threshold:g}: {len(detections.boxes)}",
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
    labels: Sequence[str],
    side: int,
    metadata: Metadata | None = None,
    **shapes: Any,
) -> np.ndarray:
    scale = side / max(image.shape[:2])
    visualizer = Visualizer(image, metadata, scale=scale)
    # Its own choice is for large images, and hard to read on small ones.
    visualizer._default_font_size = max(visualizer._default_font_size, LABEL_POINTS / scale)
    drawn: VisImage = visualizer.overlay_instances(
        boxes=boxes,
        labels=labels,
        assigned_colors=[CLASS_COLORS[c % len(CLASS_COLORS)] for c in classes],
        **shapes,
    )
    return drawn.get_image()
