"""Objects drawn into images, and how pictures become files and pixels."""

import colorsys
import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from dgnet_det.errors import UserError
from dgnet_det.utils.files import written_whole

DPI = 110
SIDE = 900  # pixels, of the longer side of the picture of a small image
MASK_OPACITY = 0.45
MIN_KEYPOINT_SCORE = 0.05
# Okabe and Ito's colours, which colour-blind people can tell apart, less black, orange first.
CLASS_COLORS = [
    tuple(round(255 * value) for value in to_rgb(color))
    for color in ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
]
CROWD = 20  # objects, from which on no text is wider than its box
GAP = 8  # pixels between pictures side by side


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as the kind of picture that the name's suffix says."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def save_picture(picture: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a picture, [H, W, 3] RGB, uint8, as the kind that the name's suffix says."""
    with written_whole(path) as temporary:
        Image.fromarray(picture).save(temporary)


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


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    labels: Sequence[Sequence[str]],
    *,
    masks: np.ndarray | None = None,
    keypoints: np.ndarray | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
    side: int | None = None,
) -> np.ndarray:
    """Draw objects into an image: boxes in the colours of their classes, or masks, each in a colour
    of its own.

    Args:
        image: [H, W, 3] RGB, uint8. It is enlarged first if it is smaller than the picture.
        boxes: [K, 4], left, top, right, bottom in pixels of the image.
        classes: K numbers.
        labels: for each object its texts, the longest first. The first that has room is drawn; an
            earlier object comes before a later one.
        masks: [K, H, W] bool.
        keypoints: [K, number of keypoints, 3], x, y, score. Those with a score near 0 are left out.
        skeleton: the pairs of keypoints that a line connects.
        side: pixels of the picture's longer side; default: the image's own, but at least
            :data:`SIDE`.

    Returns:
        [H', W', 3] RGB, uint8.
    """
    height, width = image.shape[:2]
    scale = (side or max(SIDE, height, width)) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = image.copy()
    if size != (width, height):
        canvas = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    line = max(2, round(max(size) / 450))
    if masks is None:
        colors = [CLASS_COLORS[k % len(CLASS_COLORS)] for k in classes]
    else:
        colors = [_instance_color(k) for k in range(len(classes))]
        _paint_masks(canvas, masks, colors, line)
    for points, color in zip([] if keypoints is None else keypoints, colors, strict=False):
        _draw_keypoints(canvas, points * (scale, scale, 1), skeleton, color, line)

    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    corners = np.clip(boxes * scale, 0, (*size, *size)).round().astype(int).tolist()
    for box, color in zip(corners, colors, strict=True):
        draw.rectangle(box, outline=color, width=line)
    _draw_labels(draw, size, corners, labels, colors)
    return np.asarray(picture)


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str] = ()) -> np.ndarray:
    """Pictures, [H, W, 3] RGB, uint8, in a row on white, each below its title if there are any."""
    height = max(picture.shape[0] for picture in pictures)
    font = _font(max(pictures[0].shape))
    top = round(1.8 * font.size) if titles else 0
    width = sum(picture.shape[1] + GAP for picture in pictures) - GAP
    row, left = Image.new("RGB", (width, top + height), "white"), 0
    for picture, title in zip_longest(pictures, titles):
        middle = left + picture.shape[1] / 2, top / 2
        ImageDraw.Draw(row).text(middle, title or "", "black", font, anchor="mm")
        row.paste(Image.fromarray(picture), (left, top + (height - picture.shape[0]) // 2))
        left += picture.shape[1] + GAP
    return np.asarray(row)


def _font(side: int) -> ImageFont.FreeTypeFont:
    """The font of a picture whose longer side has so many pixels."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, max(13, round(side / 65)))


def _instance_color(k: int) -> tuple[int, int, int]:
    """A colour that differs from those of neighbouring numbers."""
    rgb = colorsys.hsv_to_rgb(0.08 + 0.618034 * k, (0.8, 0.5)[k // 5 % 2], 1.0)
    return tuple(round(255 * value) for value in rgb)  # type: ignore[return-value]


def _paint_masks(
    canvas: np.ndarray, masks: np.ndarray, colors: Sequence[tuple[int, ...]], line: int
) -> None:
    """Tint each pixel once, with the colour of the smallest mask that covers it, and outline every
    mask."""
    scale = canvas.shape[1] / masks.shape[2]
    tints, outlines = np.zeros_like(canvas), []
    tinted = np.zeros(canvas.shape[:2], bool)
    for k in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
        left, top, width, height = cv2.boundingRect(masks[k].astype(np.uint8))
        if not width:
            continue
        part = np.pad(masks[k, top : top + height, left : left + width], 1).astype(np.float32)
        x, y = round((left - 1) * scale), round((top - 1) * scale)
        size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
        inside = cv2.resize(part, size, interpolation=cv2.INTER_LINEAR) > 0.5
        contours, _ = cv2.findContours(
            inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(x, y)
        )
        outlines.append((contours, colors[k]))
        # The padding may lie outside the canvas.
        inside = inside[max(0, -y) : canvas.shape[0] - y, max(0, -x) : canvas.shape[1] - x]
        x, y = max(0, x), max(0, y)
        window = slice(y, y + inside.shape[0]), slice(x, x + inside.shape[1])
        tints[window][inside] = colors[k]
        tinted[window] |= inside
    mixed = (1 - MASK_OPACITY) * canvas[tinted] + MASK_OPACITY * tints[tinted]
    canvas[tinted] = mixed.round().astype(np.uint8)
    for contours, color in outlines:
        cv2.drawContours(canvas, contours, -1, color, max(1, line - 1), cv2.LINE_AA)


def _draw_keypoints(
    canvas: np.ndarray,
    points: np.ndarray,
    skeleton: Sequence[tuple[int, int]],
    color: tuple[int, ...],
    line: int,
) -> None:
    seen = points[:, 2] > MIN_KEYPOINT_SCORE
    places = [(round(x), round(y)) for x, y, _ in points.tolist()]
    for a, b in skeleton:
        if seen[a] and seen[b]:
            cv2.line(canvas, places[a], places[b], color, line, cv2.LINE_AA)
    for place in np.array(places)[seen].tolist():
        cv2.circle(canvas, place, 2 * line, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, place, 2 * line - 1, color, -1, cv2.LINE_AA)


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    boxes: Sequence[Sequence[int]],
    labels: Sequence[Sequence[str]],
    colors: Sequence[tuple[int, ...]],
) -> None:
    """Write each object's first text that has room above, in or below its box."""
    font = _font(max(size))
    taken = np.zeros((0, 4), int)
    height = round(1.3 * font.size)
    for (left, top, right, bottom), texts, color in zip(boxes, labels, colors, strict=True):
        dark = np.dot(color, (0.299, 0.587, 0.114)) < 110
        for text in texts:
            width = round(draw.textlength(text, font)) + 6
            if width > right - left and len(boxes) >= CROWD:
                continue
            x = max(0, min(left, size[0] - width))
            places = [
                (x, y, x + width, y + height)
                for y in (top - height, top, bottom)
                if 0 <= y <= size[1] - height
            ]
            free = [place for place in places if not _overlap(place, taken).any()]
            if free:
                x, y, *_ = free[0]
                draw.rectangle((x, y, x + width, y + height), fill=color)
                ink = "white" if dark else "black"
                draw.text((x + 3, y + height / 2), text, ink, font, anchor="lm")
                taken = np.append(taken, [free[0]], axis=0)
                break


def _overlap(place: Sequence[int], others: np.ndarray) -> np.ndarray:
    """Which of some rectangles [K, 4] a rectangle overlaps, [K] bool."""
    left, top, right, bottom = place
    return (
        (left < others[:, 2])
        & (others[:, 0] < right)
        & (top < others[:, 3])
        & (others[:, 1] < bottom)
    )
