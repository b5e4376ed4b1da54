"""Pictures as files and as pixels."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from dgnet_det.errors import UserError
from dgnet_det.utils.files import written_whole

DPI = 110
GAP = 8  # pixels between pictures side by side
CAPTION = 30  # pixels, the height of their names' line


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the name's suffix."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def save_picture(picture: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a picture, [H, W, 3] RGB, uint8, in the format of the name's suffix."""
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
    """The path of each image's picture: in ``folder`` under the image's name, as ``.png`` or with
    the suffix that ``suffixes`` has for the image's.

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


def side_by_side(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put pictures, [H, W, 3] RGB, uint8, in a row on white; several of them below their names."""
    if len(pictures) == 1:
        return next(iter(pictures.values()))
    height = max(picture.shape[0] for picture in pictures.values())
    columns = []
    for name, picture in pictures.items():
        above, rest = divmod(height - picture.shape[0], 2)
        margins = ((CAPTION + above, above + rest), (0, GAP), (0, 0))
        column = Image.fromarray(np.pad(picture, margins, constant_values=255))
        font = ImageFont.load_default(CAPTION * 2 // 3)
        middle = picture.shape[1] / 2, CAPTION / 2
        ImageDraw.Draw(column).text(middle, name, "black", font, anchor="mm")
        columns.append(np.asarray(column))
    return np.concatenate(columns, axis=1)[:, :-GAP]
