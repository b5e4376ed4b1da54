"""Synthetic ground truth and detections in COCO's formats, for tests of the evaluation.

As a program, it times the evaluation of a set of the size of COCO's minival by pycocotools and by
faster-coco-eval, and says whether all figures are equal:

    PYTHONPATH=tests python tests/coco_sets.py --images 5000
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

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
            if masks:
                annotation["segmentation"] = _rle(box)
            if keypoints:
                annotation |= {"keypoints": _keypoints(rng, box), "num_keypoints": NUM_KEYPOINTS}
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
            result = {
                "image_id": image["id"],
                "category_id": int(label),
                "bbox": box.tolist(),
                "score": float(score),
            }
            if masks:
                result["segmentation"] = _rle(box)
            if keypoints:
                result["keypoints"] = _keypoints(rng, box)
            results.append(result)
    return coco, results


def _boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """[number, 4] as x, y, width, height, of all of COCO's sizes."""
    size = np.exp(rng.uniform(np.log(8), np.log(SIDE / 2), (number, 2)))
    return np.concatenate([rng.uniform(0, SIDE / 2, (number, 2)), size], axis=1)


def _rle(box: np.ndarray) -> dict[str, Any]:
    x, y, w, h = box.tolist()
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    rle = pycocotools.mask.frPyObjects([polygon], SIDE, SIDE)[0]
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _keypoints(rng: np.random.Generator, box: np.ndarray) -> list[float]:
    points = box[:2] + box[2:] * rng.random((NUM_KEYPOINTS, 2))
    return np.column_stack([points, np.full(NUM_KEYPOINTS, 2)]).ravel().tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    from faster_coco_eval import COCOeval_faster

    truth, results = random_coco(np.random.default_rng(0), images=args.images, categories=80)
    print(f"{len(truth['annotations'])} objects, {len(results)} detections")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(truth))
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(path)
    for _ in range(args.repeats):
        stats = []
        for kind in (COCOeval, COCOeval_faster):
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                found = coco.loadRes([dict(result) for result in results])
                loaded = time.perf_counter()
                evaluation = kind(coco, found, "bbox")
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            end = time.perf_counter()
            stats.append(evaluation.stats[:12])
            print(
                f"{kind.__name__}: {end - start:.1f} s, of which {loaded - start:.1f} s to load"
                " the detections"
            )
        print("equal" if np.array_equal(*stats) else f"different: {stats}")


if __name__ == "__main__":
    main()
