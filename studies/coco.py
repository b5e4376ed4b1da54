"""A detection set that a script writes: PNG files and a COCO JSON per split."""

import json
from pathlib import Path
from typing import Any

from PIL import Image


class SplitWriter:
    """One split: images in ``folder/split`` and, once closed,
    ``folder/annotations/split.json``."""

    def __init__(
        self, folder: Path, split: str, classes: tuple[str, ...], description: str
    ) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._classes, self._description = classes, description
        self._folder = folder / split
        self._folder.mkdir(parents=True)
        self._json_file = folder / "annotations" / f"{split}.json"

    def add(self, name: str, image: Image.Image, objects: list[tuple[int, list[float]]]) -> None:
        """Add an image and its objects, each a class from 0 and a box: x, y, width and height in
        pixels."""
        image.save(self._folder / name)
        number = len(self.images) + 1
        size = {"width": image.width, "height": image.height}
        self.images.append({"id": number, "file_name": name, **size})
        for label, box in objects:
            entry = {"id": len(self.annotations) + 1, "image_id": number, "category_id": label + 1}
            area = box[2] * box[3]
            self.annotations.append({**entry, "bbox": box, "area": area, "iscrowd": 0})

    def close(self) -> None:
        """Write the JSON."""
        content = {
            "info": {"description": self._description},
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": k, "name": name} for k, name in enumerate(self._classes, 1)],
        }
        self._json_file.parent.mkdir(exist_ok=True)
        self._json_file.write_text(json.dumps(content))
