"""Detection data that a script writes: PNG files and COCO JSON."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

# A file's name, its pixels, and its objects: each a class from 0 and a box as x, y, width, height.
Labelled = tuple[str, Image.Image, list[tuple[int, list[float]]]]


def write_split(
    folder: Path,
    split: str,
    classes: Sequence[str],
    info: dict[str, Any],
    items: Iterable[Labelled],
) -> tuple[int, int]:
    """Write ``folder/split/*.png`` and ``folder/annotations/split.json``; the numbers of images and
    of boxes."""
    (folder / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, pixels, objects in items:
        pixels.save(folder / split / name)
        image_id = len(images) + 1
        size = {"width": pixels.width, "height": pixels.height}
        images.append({"id": image_id, "file_name": name, **size})
        for label, box in objects:
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1}
            annotations.append({**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, start=1)]
    coco = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    return len(images), len(annotations)
