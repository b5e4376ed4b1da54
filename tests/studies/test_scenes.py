"""Composed scenes: COCO JSON, boxes around what is visible, the same again every time."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgnet_det.data.classification import fashion_mnist
from studies.scenes import SIZE, compose, write_composed_scenes

COUNT = {"train": 6, "test": 4}


@pytest.mark.usefixtures("products")
def test_boxes_are_tight_and_inside() -> None:
    products = fashion_mnist("train")
    rng = np.random.default_rng(0)
    background = Image.new("RGB", (200, 150))  # black: whatever is bright was pasted
    for _ in range(20):
        scene, items = compose(background, products, rng)
        assert scene.size == (SIZE, SIZE)
        assert 1 <= len(items) <= 5
        outside = np.asarray(scene.convert("L")).copy()
        for label, (left, top, right, bottom) in items:
            assert 0 <= label < 10
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
            inside = outside[top:bottom, left:right]
            assert inside.any(axis=0).mean() > 0.9 or inside.max() == 0
        for _, (left, top, right, bottom) in items:
            # The soft rim of an enlarged pixel, up to 64 / 28 wide, is outside of its box.
            outside[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = 0
        assert outside.max() == 0


@pytest.mark.usefixtures("products")
def test_box_of_a_known_product() -> None:
    products = fashion_mnist("train")
    _, items = compose(Image.new("RGB", (128, 128)), products, np.random.default_rng(1))
    for label, (left, top, right, bottom) in items:
        # The fixture's rectangle: 20 rows of 28, 4 + 2 · label columns, in a frame of one scale.
        scale = (bottom - top) / 20
        assert 32 / 28 - 0.1 <= scale <= 64 / 28 + 0.1
        assert right - left == pytest.approx(scale * (4 + 2 * label), abs=2)


@pytest.mark.usefixtures("products")
def test_written_in_coco_format_and_again_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    write_composed_scenes(folder, COUNT)
    backup = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert len(backup) == 6 + 4 + 2
    coco = json.loads((folder / "annotations/train.json").read_text())
    assert [category["name"] for category in coco["categories"]][:2] == ["T-shirt/top", "Trouser"]
    assert {a["category_id"] for a in coco["annotations"]} <= set(range(1, 11))
    assert {a["image_id"] for a in coco["annotations"]} == {1, 2, 3, 4, 5, 6}
    for image in coco["images"]:
        assert Image.open(folder / "train" / image["file_name"]).size == (SIZE, SIZE)

    (folder / "train/00000.png").unlink()
    write_composed_scenes(folder, COUNT)  # there already: left alone
    assert not (folder / "train/00000.png").exists()
    write_composed_scenes(folder, {"train": 7, "test": 4})
    assert (folder / "train/00006.png").exists()
    write_composed_scenes(folder, COUNT)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == backup
