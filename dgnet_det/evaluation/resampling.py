"""AP on images that are drawn with replacement, for a bootstrap."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class ResampledAP:
    """Box AP, per cent, of detections on images that are drawn with replacement.

    It equals pycocotools' on a dataset in which every image is contained as often as it was drawn,
    but for the order of detections of exactly one score. The images are matched once.
    """

    def __init__(self, truth: COCO, found: list[dict[str, Any]], image_ids: Sequence[int]) -> None:
        """
        Args:
            truth: the annotations.
            found: detections in COCO's result format.
            image_ids: the images, those without detections too.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            matching = COCOeval(truth, truth.loadRes(found) if found else COCO(), "bbox")
            params = matching.params
            params.imgIds = list(image_ids)
            params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
            params.maxDets = params.maxDets[-1:]
            matching.evaluate()
        self.recalls = params.recThrs
        self.classes = []
        count = len(params.imgIds)
        for start in range(0, len(matching.evalImgs), count):
            images = [(k, e) for k, e in enumerate(matching.evalImgs[start:][:count]) if e]
            if not images:
                continue
            positives = np.zeros(count)
            for k, e in images:
                positives[k] = np.logical_not(e["gtIgnore"]).sum()
            places = np.repeat([k for k, _ in images], [len(e["dtScores"]) for _, e in images])
            order = np.argsort(-np.concatenate([e["dtScores"] for _, e in images]), kind="stable")
            matched = np.concatenate([e["dtMatches"] for _, e in images], axis=1)[:, order] != 0
            counted = ~np.concatenate([e["dtIgnore"] for _, e in images], axis=1)[:, order]
            self.classes.append((positives, places[order], matched & counted, ~matched & counted))

    def __call__(self, counts: np.ndarray) -> float:
        """AP where each image, in ascending order of the ids, was drawn ``counts`` times, [n]; NaN
        without objects."""
        precisions = []
        for positives, places, true, false in self.classes:
            objects = counts @ positives
            if not objects:
                continue
            hits, misses = (np.cumsum(x * counts[places], axis=1) for x in (true, false))
            precision = hits / (hits + misses + np.spacing(1))
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for recall, row in zip(hits / objects, best, strict=True):
                precisions.append(np.append(row, 0.0)[np.searchsorted(recall, self.recalls)])
        return 100 * float(np.mean(precisions)) if precisions else float("nan")
