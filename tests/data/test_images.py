"""Which files the user's paths stand for, and their pixels."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers.checked_sets import DETECTION
from helpers.coco_sets import Splits
from helpers.imported_sets import turned_by
from PIL import Image

from dgnet_det.data import find_images, load_cfg_with_data, read_image, spread_images
from dgnet_det.data.depth import advice, convert, value_range
from dgnet_det.data.images import opened, stored_size, upright_size
from dgnet_det.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", "clip.mp4", "deeper/c.png", "a[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([""], ["a.JPG", "a[1].png", "b.png"]),
        (["b.png", "notes.txt"], ["b.png", "notes.txt"]),
        (["b*.png"], ["b.png"]),
        (["**/[bc].png"], ["b.png", "deeper/c.png"]),
        (["?.*", "clip.mp4"], ["a.JPG", "b.png", "clip.mp4"]),
        (["deeper", "b.png"], ["deeper/c.png", "b.png"]),
        (["a[1].png"], ["a[1].png"]),  # which looks like a pattern
    ],
)
def test_files_folders_and_patterns(folder: Path, inputs: list[str], expected: list[str]) -> None:
    found = find_images([str(folder / name) for name in inputs])
    assert [str(file.relative_to(folder)) for file in found] == expected


def test_suffixes_and_nothing_there(folder: Path) -> None:
    assert folder / "clip.mp4" not in find_images([str(folder)])
    assert folder / "clip.mp4" in find_images([str(folder)], also={".mp4"})
    (folder / "notes.pdf").touch()  # which Pillow writes and does not read
    assert folder / "notes.pdf" not in find_images([str(folder)])
    (folder / "empty").mkdir()
    for path, message in (("empty", "no image in this folder"), ("*.bmp", "no such image or fold")):
        with pytest.raises(UserError, match=re.escape(f"{folder / path}: {message}")):
            find_images([str(folder / path)])


def test_read_image(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    Image.new("RGB", (4, 3), (1, 2, 3)).save(path)
    assert np.array_equal(read_image(path, "RGB")[0, 0], [1, 2, 3])
    assert np.array_equal(read_image(str(path), "BGR")[0, 0], [3, 2, 1])
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png: the image does not decode"):
        read_image(path, "RGB")
    with pytest.raises(UserError, match=r"2\.png: no such file"):
        read_image(tmp_path / "2.png", "RGB")
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff")  # broken tags
    assert read_image(tmp_path / "a.jpg", "RGB").shape == (3, 4, 3)


# Of the pixels as they are stored, [H, W, C], those that an EXIF tag asks for.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p[::-1].swapaxes(0, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("tag", UPRIGHT)
def test_every_format_is_turned_once(tmp_path: Path, ending: str, tag: int) -> None:
    stored = np.zeros((24, 40, 3), np.uint8)
    stored[:8, :16] = (200, 40, 90)
    path = tmp_path / f"a.{ending}"
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    Image.fromarray(stored).save(path, exif=turned_by(tag), **lossless.get(ending, {}))
    expected = UPRIGHT[tag](stored)
    found = read_image(path, "RGB")
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 8  # JPEG's rounding
    with opened(path) as image:
        assert stored_size(image) == (40, 24)
        assert upright_size(image) == expected.shape[1::-1]


@pytest.mark.parametrize(
    "name", ["1.png", "3.png", "4.png", "1.tif", "3.tif", "4.tif", "1.pgm", "3.ppm", "3.jp2"]
)
def test_more_than_8_bits(tmp_path: Path, name: str) -> None:
    """By the file's own depth: of several channels Pillow keeps the upper 8 bits."""
    rng = np.random.default_rng(0)
    shape = (200, 300, int(name[0]))
    cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, shape, dtype=np.uint8))
    assert read_image(tmp_path / name, "RGB").shape == (200, 300, 3)
    cv2.imwrite(str(tmp_path / name), rng.integers(0, 4095, shape, dtype=np.uint16))
    with pytest.raises(UserError, match=rf"{name}: pixels of more than 8 bits: convert all"):
        read_image(tmp_path / name, "RGB")
    for kind in (np.int32, np.float32):
        Image.fromarray(np.full((3, 4), 900, kind)).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"a\.tif: pixels of more than 8 bits: convert all"):
            read_image(tmp_path / "a.tif", "RGB")


@pytest.mark.parametrize("tag", UPRIGHT)
@pytest.mark.parametrize("ending", ["tif", "png"])
def test_conversion_to_8_bits(tmp_path: Path, tag: int, ending: str) -> None:
    """Under the same names, by one scale, upright, in colours' order; images of 8 bits stay."""
    folder, output = tmp_path / "images", tmp_path / "images_8bit"
    (folder / "deeper").mkdir(parents=True)
    pixels = np.zeros((20, 30, 3), np.uint16)
    pixels[:10] = (235, 47, 5000)  # red, green, blue
    cv2.imwrite(str(folder / "a.png"), pixels[:, :, ::-1])
    gray = np.linspace(0, 235, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(gray).save(folder / f"deeper/b.{ending}", exif=turned_by(tag))
    Image.new("RGB", (4, 3), (9, 8, 7)).save(folder / "c.png")
    assert value_range(str(folder / f"deeper/b.{ending}")).tolist() == [0, 235, 0, 234]
    said = advice([str(folder / "a.png"), str(folder / f"deeper/b.{ending}")], str(folder))
    assert "values from 0 to 5000, without the outermost" in said
    assert f"convert('{folder}', '{output}', 0, 5000)" in said
    convert(str(folder), str(output), 0, 235)
    assert read_image(output / "a.png", "RGB")[0, 0].tolist() == [255, 51, 255]
    expected = UPRIGHT[tag](gray) / 235 * 255
    found = read_image(output / f"deeper/b.{ending}", "L")[:, :, 0].astype(float)
    assert np.abs(found - expected).max() <= 1  # rounded at halves
    assert read_image(output / "c.png", "RGB")[0, 0].tolist() == [9, 8, 7]


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (200, 150)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(UserError, match=r"a\.png: more than the .* pixels .*: cut it into tiles"):
        read_image(tmp_path / "a.png", "L")


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    """A mistake in the code is not told as one of the image."""
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "a.png"):
        _ = 1 / 0


def test_an_animation_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING, "dgnet_det"):
        for _ in range(2):
            assert np.array_equal(read_image(path, "RGB")[0, 0], [255, 0, 0])
    assert caplog.messages == [f"{path}: holds several pictures: only the first is read"]


def test_spread_images(splits: Splits) -> None:
    (name,) = load_cfg_with_data(DETECTION, splits.overrides).DATASETS.TRAIN

    def ids(num: int) -> list[int]:
        return [image["image_id"] for image in spread_images(name, num)]

    assert ids(1) == [1]
    assert ids(3) == [1, 3, 6]
    assert ids(9) == list(range(1, 9)) == [i["image_id"] for i in DatasetCatalog.get(name)]
    with pytest.raises(UserError, match="0 images: give at least 1"):
        ids(0)
