"""AP of resampled images against pycocotools on datasets that contain the images so often."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from coco_sets import random_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dgnet_det.evaluation.resampling import ResampledAP

IMAGES = 12


@pytest.fixture(scope="module")
def sets() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and detections, without ties between scores."""
    rng = np.random.default_rng(0)
    truth, found = random_coco(rng, images=IMAGES, categories=3, detections=30)
    for result in found:
        result["score"] += rng.uniform(-1e-4, 1e-4)
    return truth, found


def to_coco(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


@pytest.mark.parametrize(
    "counts", [[1] * IMAGES, [3, 0, 1, 0, 2, 0, 0, 1, 4, 0, 1, 0], [0] * (IMAGES - 1) + [12]]
)
def test_it_is_that_of_pycocotools(
    counts: list[int], sets: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    truth, found = sets
    copies: dict[str, list[Any]] = {"images": [], "annotations": []}
    copied_found = []
    for image, count in zip(truth["images"], counts, strict=True):
        for _ in range(count):
            new = len(copies["images"]) + 1
            copies["images"].append({**image, "id": new})
            for a in truth["annotations"]:
                if a["image_id"] == image["id"]:
                    number = len(copies["annotations"]) + 1
                    copies["annotations"].append({**a, "image_id": new, "id": number})
            of_image = [r for r in found if r["image_id"] == image["id"]]
            copied_found += [{**r, "image_id": new} for r in of_image]
    coco = to_coco({**truth, **copies})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(copied_found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ids = [image["id"] for image in truth["images"]]
    ap = ResampledAP(to_coco(truth), [dict(r) for r in found], ids)(np.array(counts))
    assert ap == pytest.approx(100 * evaluation.stats[0], abs=1e-9)
    assert ap > 1


def test_nothing_found_or_nothing_to_find(
    sets: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    truth, found = sets
    ids = [image["id"] for image in truth["images"]]
    assert ResampledAP(to_coco(truth), [], ids)(np.ones(IMAGES)) == 0
    no_objects = to_coco({**truth, "annotations": []})
    assert np.isnan(ResampledAP(no_objects, [dict(r) for r in found], ids)(np.ones(IMAGES)))
