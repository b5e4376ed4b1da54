"""How pictures become files, and where they go."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dgnet_det.errors import UserError
from dgnet_det.utils.pictures import (
    CAPTION,
    GAP,
    figure_pixels,
    picture_paths,
    save_figure,
    save_picture,
    side_by_side,
)


def test_pictures_side_by_side() -> None:
    low, high = (np.full((h, 40, 3), 9, np.uint8) for h in (10, 14))
    row = side_by_side({"low": low, "high": high})
    assert row.shape == (CAPTION + 14, 80 + GAP, 3)
    assert np.array_equal(row[CAPTION + 2 : CAPTION + 12, :40], low)
    assert np.array_equal(row[CAPTION:, 40 + GAP :], high)
    assert (row[:CAPTION] < 128).any()  # their names
    assert np.array_equal(side_by_side({"low": low}), low)


def test_files(tmp_path: Path) -> None:
    grey = np.full((50, 80, 3), 128, np.uint8)
    save_picture(grey, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), grey)
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([1, 2])
    save_figure(figure, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert np.array_equal(figure_pixels(figure), pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_where_pictures_go(tmp_path: Path) -> None:
    files = [tmp_path / "a.jpg", tmp_path / "b.MOV"]
    out = tmp_path / "out"
    assert picture_paths(out, files, {".mov": ".mp4"}) == [out / "a.png", out / "b.mp4"]
    with pytest.raises(UserError, match=r"c/a\.png: another file would also be drawn as"):
        picture_paths(out, [*files, tmp_path / "c" / "a.png"])
    with pytest.raises(UserError, match=r"x\.png: a picture would overwrite this image"):
        picture_paths(tmp_path / "in", [tmp_path / "in" / "x.png"])
