"""Which files the user's paths stand for, and their pixels."""

import logging
from pathlib import Path

import numpy as np
import pytest
from coco_sets import Splits
from detectron2.data import DatasetCatalog
from PIL import Image

from configs import ROOT
from dgnet_det.data import find_images, load_cfg_with_data, read_image, spread_images
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


def test_further_suffixes(folder: Path) -> None:
    assert folder / "clip.mp4" not in find_images([str(folder)])
    assert folder / "clip.mp4" in find_images([str(folder)], also={".mp4"})
    (folder / "notes.pdf").touch()  # which Pillow writes and does not read
    assert folder / "notes.pdf" not in find_images([str(folder)])


def test_nothing_there(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no image in this folder"):
        find_images([str(folder / "empty")])
    with pytest.raises(UserError, match=r"\*\.bmp: no such image or folder"):
        find_images([str(folder / "*.bmp")])


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


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_pixels_of_more_than_8_bits_are_refused(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((3, 4), 900, kind)).save(path)
    with pytest.raises(UserError, match=r"a\.tif: pixels of more than 8 bits \(.*: convert all"):
        read_image(path, "RGB")


def test_an_animation_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING, "dgnet_det"):
        for _ in range(2):
            assert np.array_equal(read_image(path, "RGB")[0, 0], [255, 0, 0])
    assert caplog.messages == [f"{path}: holds several pictures: only the first is read"]


def test_spread_images(splits: Splits) -> None:
    config = ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml"
    (name,) = load_cfg_with_data(str(config), splits.overrides).DATASETS.TRAIN

    def ids(num: int) -> list[int]:
        return [image["image_id"] for image in spread_images(name, num)]

    assert ids(1) == [1]
    assert ids(3) == [1, 3, 6]
    assert ids(9) == list(range(1, 9)) == [i["image_id"] for i in DatasetCatalog.get(name)]
    with pytest.raises(UserError, match="0 images: give at least 1"):
        ids(0)
