"""Pictures of objects: boxes, masks, keypoints, and labels that can be read."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

SIDE = 900  # pixels, of the longer side of the picture of a small image
# Okabe and Ito's, which colour-blind people can tell apart, less black, orange first.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
LABEL, SMALLEST_LABEL = 0.013, 11  # height: share of the longer side, and pixels
PAD = 2  # pixels around a label
FRAME, OUTLINE = 0.0028, 1.5  # width of a box's line as such a share, pixels of its dark rim


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    class_names: Sequence[str],
    *,
    notes: Sequence[str],
    masks: Any = None,
    keypoints: Any = None,
    metadata: Metadata | None = None,
    side: int | None = None,
) -> np.ndarray:
    """Draw n objects by Detectron2's visualizer, each in its class's colour. Labels lie inside the
    picture and off each other; one without room is left out.

    Args:
        image: [H, W, 3] RGB, uint8, like the returned picture.
        boxes: [n, 4], left, top, right, bottom in pixels.
        classes: [n], places in ``class_names``.
        notes: [n], texts after the objects' class names.
        masks, keypoints: as for :meth:`Visualizer.overlay_instances`.
        metadata: a dataset's, which tells which keypoints are connected.
        side: pixels of the picture's longer side; default: the image's own, at least :data:`SIDE`.
    """
    longer = max(image.shape[:2])
    side = side or max(SIDE, longer)
    colors = [COLORS[k % len(COLORS)] for k in classes]
    drawn = Visualizer(image, metadata, scale=side / longer).overlay_instances(
        boxes=boxes, masks=masks, keypoints=keypoints, assigned_colors=colors
    )
    points = 72 / drawn.dpi  # in a pixel
    line = max(2.0, FRAME * side) * points
    rim = [withStroke(linewidth=line + 2 * OUTLINE * points, foreground="0.1")]
    for patch in drawn.ax.patches:
        if isinstance(patch, Rectangle):
            patch.set(alpha=None, linewidth=line, path_effects=rim)
    labels = [class_names[k] for k in classes]
    _write_labels(drawn, boxes, labels, notes, colors, max(SMALLEST_LABEL, LABEL * side) * points)
    return drawn.get_image()


def _write_labels(
    drawn: VisImage,
    boxes: np.ndarray,
    names: Sequence[str],
    notes: Sequence[str],
    colors: Sequence[str],
    size: float,
) -> None:
    """Write labels in the order of the objects: above the box, below it, or inside."""
    renderer = drawn.canvas.get_renderer()  # type: ignore[attr-defined]
    limit = np.array(drawn.canvas.get_width_height())
    taken = np.zeros((0, 4))
    for box, name, note, color in zip(boxes * drawn.scale, names, notes, colors, strict=True):
        font, written = writable(name)
        text = drawn.ax.text(
            0, 0, written + note, font=font, size=size, color=color, va="top", zorder=10,
            parse_math=False,
            bbox={"facecolor": "black", "alpha": 0.75, "pad": PAD * 72 / drawn.dpi, "lw": 0},
        )  # fmt: skip
        extent = text.get_window_extent(renderer)
        label = np.array([extent.width, extent.height]) + 2 * PAD
        for y in (box[1] - label[1], box[3], box[1]):
            corner = np.clip((box[0], y), 0, np.maximum(limit - label, 0))
            place = np.concatenate([corner, corner + label])
            apart = (place[2:] <= taken[:, :2]) | (place[:2] >= taken[:, 2:])
            if apart.any(axis=1).all():
                text.set_position((corner + PAD) / drawn.scale)
                taken = np.vstack([taken, place])
                break
        else:
            text.remove()


@cache
def writable(name: str) -> tuple[Path, str]:
    """Find a font for a name. If none has its letters, they become code points, and this is logged.
    Returns the font's file and the name to write."""
    default = Path(font_manager.findfont(font_manager.FontProperties()))
    needed = set(map(ord, name))
    # matplotlib's last resort has a box for every letter.
    fonts = [f.fname for f in font_manager.fontManager.ttflist if "LastResort" not in f.fname]
    for font in (default, *map(Path, sorted(fonts))):
        try:
            if needed <= FT2Font(font).get_charmap().keys():
                return font, name
        except (OSError, RuntimeError):  # a font that matplotlib cannot use
            continue
    written = name.encode("ascii", "backslashreplace").decode()
    logging.getLogger(__name__).warning(
        "no installed font has the letters of %r, which is written as %s: install one that has,"
        " such as Noto Sans CJK",
        name,
        written,
    )
    return default, written
