"""What is drawn into images, and where pictures go."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dgnet_det.errors import UserError
from dgnet_det.utils.pictures import (
    CLASS_COLORS,
    CROWD,
    SIDE,
    draw_objects,
    figure_pixels,
    picture_paths,
    save_figure,
    save_picture,
    side_by_side,
)

GREY = np.full((50, 80, 3), 128, np.uint8)
BOXES = np.array([[5, 5, 30, 30], [40, 10, 60, 40]], np.float32)
NO_LABELS: list[tuple[str, ...]] = [(), ()]
SCALE = SIDE / 80


def is_color(picture: np.ndarray, color: tuple[int, ...]) -> np.ndarray:
    return (picture == np.array(color)).all(axis=2)


def test_boxes_are_where_they_should_be() -> None:
    picture = draw_objects(GREY, BOXES, [0, 1], NO_LABELS)
    assert picture.shape == (round(50 * SCALE), SIDE, 3)
    for box, color in zip(BOXES, CLASS_COLORS, strict=False):
        y, x = np.nonzero(is_color(picture, color))
        np.testing.assert_allclose([x.min(), y.min(), x.max(), y.max()], box * SCALE, atol=1)
        left, top, right, bottom = (box * SCALE).round().astype(int)
        inside = picture[top + 5 : bottom - 5, left + 5 : right - 5]
        assert (inside == 128).all()
    # A class keeps its colour; there are more classes than colours.
    assert is_color(draw_objects(GREY, BOXES[:1], [7], [()]), CLASS_COLORS[0]).any()
    assert (draw_objects(GREY, BOXES[:0], [], []) == 128).all()


def test_small_images_are_enlarged_and_large_ones_keep_their_size() -> None:
    ramp = np.repeat(np.linspace(0, 255, 10).astype(np.uint8)[None, :, None], 6, axis=0)
    picture = draw_objects(np.repeat(ramp, 3, axis=2), BOXES[:0], [], [])
    assert picture.shape == (540, 900, 3)
    assert len(np.unique(picture[0, :, 0])) > 100  # smooth: not ten blocks
    large = np.full((700, 1000, 3), 128, np.uint8)
    assert draw_objects(large, BOXES, [0, 0], NO_LABELS).shape == (700, 1000, 3)
    assert draw_objects(large, BOXES, [0, 0], NO_LABELS, side=500).shape == (350, 500, 3)


def labelled(boxes: np.ndarray, labels: list[tuple[str, ...]]) -> np.ndarray:
    """The pixels that labels change, [H, W] bool, in a picture of 900 × 600."""
    canvas = np.full((600, 900, 3), 128, np.uint8)
    none: list[tuple[str, ...]] = [()] * len(boxes)
    classes = [0] * len(boxes)
    bare = draw_objects(canvas, boxes, classes, none)
    return (draw_objects(canvas, boxes, classes, labels) != bare).any(axis=2)


def test_labels_stay_in_the_picture_and_do_not_cover_each_other() -> None:
    corner = np.array([[860.0, 0, 900, 600]])
    _, x = np.nonzero(labelled(corner, [("kite 90%",)]))
    assert x.max() < 900
    assert x.min() < 850  # shifted to the left
    one = labelled(np.array([[100.0, 100, 300, 300]]), [("kite 90%",)])
    # The same box twice: the second label goes elsewhere, a fourth has no room.
    twice = labelled(np.array([[100.0, 100, 300, 300]] * 2), [("kite 90%",)] * 2)
    often = labelled(np.array([[100.0, 100, 300, 300]] * 9), [("kite 90%",)] * 9)
    assert twice.sum() == pytest.approx(2 * one.sum(), rel=0.1)
    assert often.sum() == pytest.approx(3 * one.sum(), rel=0.1)


@pytest.mark.parametrize(("width", "written"), [(70, (40, 70)), (35, (15, 35)), (15, (0, 0))])
def test_a_crowd_has_scores_where_there_is_room(width: int, written: tuple[int, int]) -> None:
    grid = [(80.0 * i, 60.0 * j) for i in range(10) for j in range(4)]
    assert len(grid) >= CROWD
    boxes = np.array([[x, y, x + width, y + 50] for x, y in grid])
    changed = labelled(boxes, [("a kite", "9%")] * len(boxes))
    assert written[0] <= changed[:60, :80].any(axis=0).sum() <= written[1]
    alone = labelled(boxes[:1], [("a kite", "9%")])
    assert alone.any(axis=0).sum() >= 40


def test_masks_never_add_up_to_an_opaque_colour() -> None:
    masks = np.zeros((6, 50, 80), bool)
    for k in range(6):
        masks[k, 10 : 40 - k, 10 : 60 - k] = True
    boxes = np.array([[10, 10, 60 - k, 40 - k] for k in range(6)], np.float32)
    y, x = round(25 * SCALE), round(30 * SCALE)
    pixels = []
    for value in (0, 255):
        canvas = np.full((50, 80, 3), value, np.uint8)
        pixels.append(draw_objects(canvas, boxes, [0] * 6, [()] * 6, masks=masks)[y, x])
    # Black and white still differ by more than half under six masks.
    assert (pixels[1].astype(int) - pixels[0] > 127).all()
    picture = draw_objects(GREY, boxes, [0] * 6, [()] * 6, masks=masks)
    outside = picture[round(45 * SCALE) :]
    assert (outside == 128).all()
    # Objects of one class have colours of their own.
    rims = {tuple(picture[round(top * SCALE), x]) for top in [10]}
    edges = {tuple(picture[round((40 - k) * SCALE), x]) for k in range(6)}
    assert len(edges | rims) >= 6


def test_a_mask_lies_where_it_should_also_at_the_edge() -> None:
    mask = np.zeros((1, 50, 80), bool)
    mask[0, :20, :30] = True
    picture = draw_objects(GREY, np.array([[0.0, 0, 30, 20]]), [0], [()], masks=mask)
    tinted = (picture != 128).any(axis=2)
    y, x = np.nonzero(tinted)
    assert (y.min(), x.min()) == (0, 0)
    np.testing.assert_allclose([x.max(), y.max()], np.array([30, 20]) * SCALE, atol=SCALE)
    assert tinted[: round(19 * SCALE), : round(29 * SCALE)].all()
    nothing = np.zeros((1, 50, 80), bool)
    draw_objects(GREY, BOXES[:1], [0], [()], masks=nothing)


def test_keypoints_and_the_lines_between_them() -> None:
    points = np.array([[[15, 25, 0.9], [35, 25, 0.9], [70, 45, 0.01]]], np.float32)
    box = np.array([[1.0, 1, 79, 49]])
    dotted = draw_objects(GREY, box, [0], [()], keypoints=points)
    linked = draw_objects(GREY, box, [0], [()], keypoints=points, skeleton=[(0, 1), (1, 2)])
    y, x = round(25 * SCALE), round(25 * SCALE)
    for px, py, score in points[0]:
        at = dotted[round(float(py) * SCALE), round(float(px) * SCALE)]
        assert (at != 128).any() == (score > 0.5)
    assert (dotted[y, x] == 128).all()
    assert (linked[y, x] != 128).any()
    assert (linked[round(35 * SCALE), round(52 * SCALE)] == 128).all()


def test_pictures_side_by_side() -> None:
    low, high = np.zeros((20, 300, 3), np.uint8), np.zeros((60, 400, 3), np.uint8)
    row = side_by_side([low, high])
    assert row.shape == (60, 708, 3)
    assert (row[20:40, :300] == 0).all()
    assert (row[:20, :300] == 255).all()
    titled = side_by_side([high, high], ["one", "two"])
    strip = titled.shape[0] - 60
    assert strip > 10
    assert (titled[:strip, :400] < 128).any()
    assert (titled[:strip, 408:] < 128).any()


def test_files(tmp_path: Path) -> None:
    save_picture(GREY, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), GREY)
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
