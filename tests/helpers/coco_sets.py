"""Datasets in COCO's formats: random ground truth with detections, and small ones on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image

SIDE = 640  # pixels, of every image
NUM_KEYPOINTS = 17


def random_coco(
    rng: np.random.Generator,
    *,
    images: int,
    categories: int,
    objects: float = 7.3,
    detections: int = 100,
    masks: bool = False,
    keypoints: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A ground truth and detections on it, some near an object and some anywhere.

    Ids have gaps; some objects are crowds, some images empty, some scores tied, as in COCO.

    Args:
        rng: draws everything.
        images, categories: their numbers.
        objects: mean number of an image, COCO minival's by default.
        detections: of every image.
        masks, keypoints: give objects and detections masks (rectangles), or keypoints.

    Returns:
        The content of an annotation file, and detections in COCO's result format.
    """
    ids = np.sort(rng.choice(np.arange(1, 2 * categories + 1), categories, replace=False))
    coco: dict[str, Any] = {
        "info": {},
        "images": [
            {"id": 3 * i + 1, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE}
            for i in range(images)
        ],
        "annotations": [],
        "categories": [{"id": int(k), "name": f"class {k}"} for k in ids],
    }
    results = []
    for image in coco["images"]:
        number = rng.poisson(objects)
        boxes, classes = _boxes(rng, number), rng.choice(ids, number)
        for box, label in zip(boxes, classes, strict=True):
            annotation = {
                "id": len(coco["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": int(label),
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
                "iscrowd": int(rng.random() < 0.02),
            }
            annotation |= _extras(rng, box, masks, keypoints)
            annotation |= {"num_keypoints": NUM_KEYPOINTS} if keypoints else {}
            coco["annotations"].append(annotation)
        near = rng.random(detections) < 0.3 if number else np.zeros(detections, dtype=bool)
        chosen = rng.integers(0, max(number, 1), detections)
        found = _boxes(rng, detections)
        labels = rng.choice(ids, detections)
        if number:
            moved = boxes[chosen] + boxes[chosen][:, [2, 3, 2, 3]] * rng.normal(
                0, 0.1, (detections, 4)
            )
            found[near] = moved[near].clip(1, SIDE)
            labels[near] = classes[chosen][near]
        scores = rng.integers(50, 1000, detections) / 1000
        for box, label, score in zip(found, labels, scores, strict=True):
            result = {"image_id": image["id"], "category_id": int(label), "bbox": box.tolist()}
            extras = _extras(rng, box, masks, keypoints)
            results.append({**result, "score": float(score), **extras})
    return coco, results


def _boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """[number, 4] as x, y, width, height, of all of COCO's sizes."""
    size = np.exp(rng.uniform(np.log(8), np.log(SIDE / 2), (number, 2)))
    return np.concatenate([rng.uniform(0, SIDE / 2, (number, 2)), size], axis=1)


def _extras(rng: np.random.Generator, box: np.ndarray, masks: bool, keypoints: bool) -> dict:
    """The mask and the keypoints of a box."""
    extras: dict[str, Any] = {}
    if masks:
        x, y, w, h = box.tolist()
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        rle = pycocotools.mask.frPyObjects([polygon], SIDE, SIDE)[0]
        extras["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    if keypoints:
        points = box[:2] + box[2:] * rng.random((NUM_KEYPOINTS, 2))
        extras["keypoints"] = np.column_stack([points, np.full(NUM_KEYPOINTS, 2)]).ravel().tolist()
    return extras


WIDTH, HEIGHT = 96, 72
BOXES = [[4.0, 6.0, 30.0, 20.0], [50.0, 40.0, 40.0, 30.0], [20.0, 10.0, 16.0, 48.0]]


class Split:
    """Images of noise, three boxes of one class in each."""

    def __init__(self, root: Path, name: str, seed: int, number: int = 8) -> None:
        self.json, self.images = root / f"{name}.json", root / name
        self.images.mkdir()
        rng = np.random.default_rng(seed)
        self.coco: dict[str, Any] = {"images": [], "annotations": []}
        for k in range(1, number + 1):
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / f"{name}{k}.jpg")
            self.coco["images"].append(
                {"id": k, "file_name": f"{name}{k}.jpg", "width": WIDTH, "height": HEIGHT}
            )
            for box in BOXES:
                identity, area = len(self.coco["annotations"]) + 1, box[2] * box[3]
                each = {"id": identity, "image_id": k, "category_id": 3, "bbox": list(box)}
                self.coco["annotations"].append({**each, "area": area, "iscrowd": 0})
        self.coco["categories"] = [{"id": 3, "name": "kite"}]
        self.write()

    def write(self) -> None:
        self.json.write_text(json.dumps(self.coco))

    def path(self, number: int) -> Path:
        return self.images / self.coco["images"][number - 1]["file_name"]


class Splits:
    """A training and a validation set."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train, self.val = Split(root, "train", 0), Split(root, "val", 1)

    @property
    def overrides(self) -> list[str]:
        """Config keys that name them."""
        words = []
        for key, split in (("TRAIN", self.train), ("VAL", self.val)):
            words += [f"DATASETS.{key}_JSON", str(split.json)]
            words += [f"DATASETS.{key}_IMAGES", str(split.images)]
        return words
