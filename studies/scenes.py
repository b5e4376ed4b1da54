"""Composed scenes: product images of Fashion-MNIST pasted onto crops of photographs.

They are no photographs. A scene is a random square crop of a photograph, scaled to ``SIZE`` ×
``SIZE`` pixels, with two to five items: product images whose frame is scaled to 32 to 64 pixels;
what is black in them is left out. An item's box is the tight one around its visible pixels. A place
where it would overlap another by more than a tenth of the smaller one's area is drawn again.
Training items come from Fashion-MNIST's training split, test items from its test split, and no
photograph is behind scenes of both.
"""

import numpy as np
from PIL import Image
from torchvision.datasets import FashionMNIST

SIZE = 128
ITEMS = (2, 5)
ITEM_SIZE = (32, 64)
MAX_OVERLAP = 0.1
ATTEMPTS = 50  # per item; one that finds no place is left out
BLACK = 8  # the brightest value of a product image, out of 255, that counts as its background

# Names in skimage.data, all of them in its wheel: nothing is downloaded.
PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "chelsea", "grass", "rocket"),
    "test": ("camera", "coffee", "gravel"),
}
Box = tuple[int, int, int, int]  # left, top, right, bottom


def compose(
    background: Image.Image, products: FashionMNIST, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """One scene: its picture, RGB, ``SIZE`` × ``SIZE``, and each item's label, 0 to 9, and box."""
    side = int(rng.integers(SIZE, min(background.size) + 1))
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in background.size)
    scene = background.resize((SIZE, SIZE), box=(left, top, left + side, top + side))
    items: list[tuple[int, Box]] = []
    for _ in range(int(rng.integers(ITEMS[0], ITEMS[1] + 1))):
        product, label = products[int(rng.integers(len(products)))]
        product = product.convert("L")
        size = (int(rng.integers(ITEM_SIZE[0], ITEM_SIZE[1] + 1)),) * 2
        visible = product.point([255 if value > BLACK else 0 for value in range(256)])
        opacity = visible.resize(size, Image.Resampling.BILINEAR)
        tight = opacity.point([255 if value > 127 else 0 for value in range(256)]).getbbox()
        if tight is None:  # all black
            continue
        for _ in range(ATTEMPTS):
            x, y = (int(rng.integers(0, SIZE - size[0] + 1)) for _ in range(2))
            box = (x + tight[0], y + tight[1], x + tight[2], y + tight[3])
            if all(_overlap(box, other) <= MAX_OVERLAP for _, other in items):
                scene.paste(product.resize(size, Image.Resampling.BILINEAR), (x, y), opacity)
                items.append((label, box))
                break
    return scene, items


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share, as a share of the smaller one's."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller
