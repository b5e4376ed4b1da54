"""Composed scenes: product images of Fashion-MNIST pasted onto crops of photographs.

They are no photographs. The rule: a scene is a random square crop of a photograph, scaled to
``SIZE`` × ``SIZE`` pixels. Two to five items are pasted onto it, each a product image whose frame
is scaled to 32 to 64 pixels; what is black in the product image is left out. An item's box is the
tight one around its visible pixels. A place where the box would overlap another by more than a
tenth of the smaller one's area is drawn again. Training items come from Fashion-MNIST's training
split, test items from its test split, and no photograph is behind scenes of both.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dgnet_det.data.catalog import COMPOSED_SCENES
from dgnet_det.data.classification import FashionMNIST, find_fashion_mnist
from dgnet_det.errors import UserError
from dgnet_det.utils.files import folder_written_whole

SIZE = 128
ITEMS = (2, 5)
ITEM_SIZE = (32, 64)
MAX_OVERLAP = 0.1
ATTEMPTS = 50  # per item; one that finds no place is left out
BLACK = 8  # the brightest value of a product image, out of 255, that counts as its background
SEED = 0

# Names in skimage.data. All are in its wheel: nothing is downloaded.
PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "chelsea", "grass", "rocket"),
    "test": ("camera", "coffee", "gravel"),
}


class Item(NamedTuple):
    """A product image at the size in which it is pasted, its opacity (both [S, S], uint8) and the
    tight box of what is visible: left, top, right, bottom."""

    pixels: Image.Image
    mask: Image.Image
    box: tuple[int, int, int, int]


def write_composed_scenes(root: Path, num_scenes: dict[str, int]) -> str:
    """Write the scenes (PNG) and the COCO JSON of both splits under ``root/composed_scenes``,
    unless the very same are there, replacing what is there only when all of it is written.

    Args:
        root: folder of the datasets.
        num_scenes: of ``train`` and ``test``.

    Returns:
        A digest of the annotations, which tells the scenes apart from others.

    Raises:
        UserError: Fashion-MNIST or scikit-image is not there.
    """
    target = root / COMPOSED_SCENES
    if _holds(target, num_scenes):
        return _digest(target)
    products = find_fashion_mnist()
    with folder_written_whole(target) as folder:
        for index, (split, fashion_split) in enumerate({"train": "train", "test": "val"}.items()):
            _write_split(
                folder,
                split,
                FashionMNIST(products, fashion_split),
                num_scenes[split],
                np.random.default_rng([SEED, index]),
            )
    return _digest(target)


def compose(
    background: Image.Image, products: FashionMNIST, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, tuple[int, int, int, int]]]]:
    """One scene: its picture, RGB, ``SIZE`` × ``SIZE``, and each item's label, 0 to 9, and box
    (left, top, right, bottom)."""
    side = int(rng.integers(SIZE, min(background.size) + 1))
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in background.size)
    scene = background.resize((SIZE, SIZE), box=(left, top, left + side, top + side))
    items: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(int(rng.integers(ITEMS[0], ITEMS[1] + 1))):
        image, label = products[int(rng.integers(len(products)))]
        item = _scale(image.convert("L"), int(rng.integers(ITEM_SIZE[0], ITEM_SIZE[1] + 1)))
        if item is None:
            continue
        for _ in range(ATTEMPTS):
            x, y = (int(rng.integers(0, SIZE - item.pixels.width + 1)) for _ in range(2))
            box = (x + item.box[0], y + item.box[1], x + item.box[2], y + item.box[3])
            if all(_overlap(box, other) <= MAX_OVERLAP for _, other in items):
                scene.paste(item.pixels, (x, y), item.mask)
                items.append((label, box))
                break
    return scene, items


def _scale(product: Image.Image, size: int) -> Item | None:
    """A product image [28, 28] at ``size`` × ``size``; None if it is all black."""
    visible = product.point([255 if value > BLACK else 0 for value in range(256)])
    mask = visible.resize((size, size), Image.Resampling.BILINEAR)
    box = mask.point([255 if value > 127 else 0 for value in range(256)]).getbbox()
    if box is None:
        return None
    return Item(product.resize((size, size), Image.Resampling.BILINEAR), mask, box)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The area that two boxes share, as a share of the smaller one's."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def _write_split(
    folder: Path, split: str, products: FashionMNIST, num_scenes: int, rng: np.random.Generator
) -> None:
    (folder / split).mkdir(parents=True)
    backgrounds = _photographs(split)
    images: list[dict] = []
    annotations: list[dict] = []
    for i in range(num_scenes):
        scene, items = compose(backgrounds[i % len(backgrounds)], products, rng)
        name = f"{i:05d}.png"
        scene.save(folder / split / name)
        images.append({"id": i + 1, "file_name": name, "width": SIZE, "height": SIZE})
        for label, (left, top, right, bottom) in items:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    coco = {
        "info": {"description": f"Composed scenes, {split}", "recipe": _recipe(split, num_scenes)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(products.classes)],
    }
    path = folder / "annotations" / f"{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco))


def _photographs(split: str) -> list[Image.Image]:
    try:
        from skimage import data  # for the study alone
    except ImportError as error:
        raise UserError(
            "the package scikit-image, which carries the photographs behind the scenes, is not"
            " installed: `pip install scikit-image`"
        ) from error
    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS[split]]


def _recipe(split: str, num_scenes: int) -> dict:
    """What the scenes depend on."""
    return {
        "scenes": num_scenes,
        "photographs": list(PHOTOGRAPHS[split]),
        "size": SIZE,
        "items": list(ITEMS),
        "item_size": list(ITEM_SIZE),
        "max_overlap": MAX_OVERLAP,
        "seed": SEED,
    }


def _holds(folder: Path, num_scenes: dict[str, int]) -> bool:
    try:
        return all(
            json.loads((folder / "annotations" / f"{split}.json").read_text())["info"]["recipe"]
            == _recipe(split, count)
            for split, count in num_scenes.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _digest(folder: Path) -> str:
    files = sorted((folder / "annotations").glob("*.json"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
