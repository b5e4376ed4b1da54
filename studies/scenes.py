"""Composed scenes: product images of Fashion-MNIST pasted onto crops of photographs.

They are no photographs. A scene is a random square crop of a photograph, scaled to ``SIZE`` ×
``SIZE`` pixels, with two to five items: product images whose frame is scaled to 32 to 64 pixels;
what is black in them is left out. An item's box is the tight one around its visible pixels. A place
where it would overlap another by more than a tenth of the smaller one's area is drawn again.
Training items come from Fashion-MNIST's training split, test items from its test split, and no
photograph is behind scenes of both.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data
from torchvision.datasets import FashionMNIST

from dgnet_det.data.classification import fashion_mnist
from dgnet_det.utils.files import folder_written_whole
from studies.coco import Labelled, write_split

SIZE = 128
ITEMS = (2, 5)
ITEM_SIZE = (32, 64)
MAX_OVERLAP = 0.1
ATTEMPTS = 50  # per item; one that finds no place is left out
BLACK = 8  # the brightest value of a product image, out of 255, that counts as its background
SEED = 0

# Names in skimage.data, all of them in its wheel: nothing is downloaded.
PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "chelsea", "grass", "rocket"),
    "test": ("camera", "coffee", "gravel"),
}
Box = tuple[int, int, int, int]  # left, top, right, bottom


def write_composed_scenes(target: Path, num_scenes: dict[str, int]) -> None:
    """Write the scenes and the COCO JSON of both splits to the folder ``target``, unless the very
    same are there, replacing what is there only when all of it is written.

    Args:
        target: the folder.
        num_scenes: of ``train`` and ``test``.

    Raises:
        UserError: Fashion-MNIST is not there and cannot be downloaded.
    """
    recipes = {split: _recipe(split, count) for split, count in num_scenes.items()}
    if all(_recipe_in(target, split) == recipe for split, recipe in recipes.items()):
        return
    with folder_written_whole(target) as folder:
        for index, (split, fashion_split) in enumerate({"train": "train", "test": "val"}.items()):
            items = fashion_mnist(fashion_split)
            scenes = _scenes(split, items, num_scenes[split], np.random.default_rng([SEED, index]))
            write_split(folder, split, items.classes, {"recipe": recipes[split]}, scenes)


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


def _scenes(
    split: str, products: FashionMNIST, count: int, rng: np.random.Generator
) -> Iterator[Labelled]:
    names = PHOTOGRAPHS[split]
    photographs = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]
    for i in range(count):
        scene, items = compose(photographs[i % len(photographs)], products, rng)
        boxes = [
            (label, [float(v) for v in (x0, y0, x1 - x0, y1 - y0)])
            for label, (x0, y0, x1, y1) in items
        ]
        yield f"{i:05d}.png", scene, boxes


def _recipe(split: str, count: int) -> dict[str, Any]:
    """What the scenes depend on."""
    return {
        "description": "composed scenes",
        "scenes": count,
        "photographs": list(PHOTOGRAPHS[split]),
        "numbers": [SIZE, *ITEMS, *ITEM_SIZE, MAX_OVERLAP, SEED],
    }


def _recipe_in(folder: Path, split: str) -> Any:
    try:
        return json.loads((folder / "annotations" / f"{split}.json").read_text())["info"]["recipe"]
    except (OSError, ValueError, KeyError):
        return None
