"""Composed scenes: boxes are around what is visible."""

import numpy as np
import pytest
from PIL import Image

from dgnet_det.data.classification import fashion_mnist
from studies.scenes import SIZE, compose


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
