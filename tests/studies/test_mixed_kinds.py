"""Four kinds of pictures: boxes around what is drawn, tiles of the right region."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studies.mixed_kinds import KINDS, TILE, Picture, page, tiles_of, write_mixed_kinds


def test_words_are_in_their_boxes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        picture, boxes = page(rng)
        pixels = np.asarray(picture).astype(int)
        is_ink = np.abs(pixels - pixels[0, 0]).sum(axis=2) > 60
        for left, top, width, height in boxes:
            box = is_ink[int(top) : int(top + height), int(left) : int(left + width)]
            assert box.any(axis=0).mean() > 0.5
            is_ink[int(top) - 1 : int(top + height) + 1, int(left) - 1 : int(left + width) + 1] = 0
        assert not is_ink.any()


def test_splits_of_a_photograph_share_no_pixel() -> None:
    rows = np.broadcast_to(np.arange(1024)[:, None] // 5, (1024, 600)).astype(np.uint8)
    boxes = np.array([[10.0, 800.0, 50.0, 840.0]])
    picture = Picture(Image.fromarray(rows).convert("RGB"), boxes)
    rng = np.random.default_rng(0)
    train = list(tiles_of([picture], "train", 30, rng))
    assert len(train) == 30
    # The bottom quarter starts at row 768; the gap is the 64 rows above it.
    assert max(np.asarray(tile).max() for tile, _ in train) <= (768 - 64 - 1) // 5
    val = list(tiles_of([picture], "val", 100, rng))
    assert len(val) == 2 * 4
    assert min(np.asarray(tile).min() for tile, _ in val) >= 768 // 5
    assert [found for _, found in val if found] == [[[10.0, 32.0, 40.0, 40.0]]]


@pytest.mark.usefixtures("products")
def test_as_many_of_each_kind(tmp_path: Path) -> None:
    written = write_mixed_kinds(tmp_path / "kinds", {"train": 5, "val": 2})
    assert written["train"][0] == 20
    assert written["val"][0] == 8
    coco = json.loads((tmp_path / "kinds/annotations/train.json").read_text())
    assert tuple(category["name"] for category in coco["categories"]) == KINDS
    kind_of = {image["id"]: image["file_name"].split("_")[0] for image in coco["images"]}
    for annotation in coco["annotations"]:
        assert KINDS[annotation["category_id"] - 1] == kind_of[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        assert min(x, y) >= 0
        assert x + width <= TILE
        assert y + height <= TILE
        assert width * height > 0
