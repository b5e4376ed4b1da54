"""COCO's metrics, computed by faster-coco-eval where it is installed."""

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dgnet_det.data import CheckedDatasetMapper
from dgnet_det.data.order import loader_workers
from dgnet_det.errors import UserError

try:
    from faster_coco_eval import COCOeval_faster
except ImportError:
    COCOeval_faster = None


def build_image_loader(cfg: CfgNode, images: Any) -> Iterable[list[dict[str, Any]]]:
    """Detectron2's test loader of images in its dataset format, one at a time, which checks the
    images as it reads them."""
    mapper = CheckedDatasetMapper(cfg, is_train=False)
    return build_detection_test_loader(images, mapper=mapper, num_workers=loader_workers(cfg))


class Evaluator(COCOEvaluator):
    """Detectron2's evaluator, which also keeps truth and detections.

    Boxes and masks are evaluated by faster-coco-eval, whose metrics differ from pycocotools' by
    rounding: it leaves out the 2e-16 that pycocotools adds to a denominator. It cannot take
    keypoints' annotations from pycocotools.

    Attributes:
        truth: the ground truth.
        found: the detections in COCO's result format, after :meth:`evaluate` in the main process.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        keypoint_sigmas: Sequence[float] = (),
    ) -> None:
        """``output_dir`` None: detections are not written; no ``keypoint_sigmas``: COCO's."""
        super().__init__(dataset_name, output_dir=output_dir, use_fast_impl=False)
        self.dataset_name = dataset_name
        self.keypoint_sigmas = keypoint_sigmas
        self.truth: COCO = self._coco_api
        annotations = self.truth.dataset.get("annotations", [])
        if any(annotation["id"] == 0 for annotation in annotations):
            # COCO's evaluation takes the id 0 of a matched object for no match.
            for number, annotation in enumerate(annotations, 1):
                annotation["id"] = number
            with contextlib.redirect_stdout(io.StringIO()):
                self.truth.createIndex()
        self.found: list[dict[str, Any]] = []

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        """Evaluate as Detectron2 does, by another implementation.

        Raises:
            UserError: the model has more classes than the dataset.
        """
        self.found = list(chain.from_iterable(image["instances"] for image in predictions))
        categories = {k: i for i, k in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        for result in self.found:
            if result["category_id"] not in categories:
                raise UserError(
                    f"{self.dataset_name}: the model found an object of its class number"
                    f" {result['category_id']} (from 0), but the dataset has {len(categories)}"
                    " classes: evaluate on data with the classes that the model was trained for"
                )
            result["category_id"] = categories[result["category_id"]]
        if self._output_dir:
            file = Path(self._output_dir) / "coco_instances_results.json"
            file.write_text(json.dumps(self.found))
        if "annotations" not in self.truth.dataset:
            return  # a test set whose annotations are not public
        for task in self._tasks_from_predictions(self.found):
            with contextlib.redirect_stdout(io.StringIO()):  # COCO's own twenty lines
                evaluation = self._evaluation(task, img_ids) if self.found else None
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(evaluation, task, class_names=names)

    def _evaluation(self, task: str, img_ids: Any) -> Any:
        """Run ``COCOeval`` or faster-coco-eval's counterpart, and return it."""
        results = self.found
        if task == "segm":  # with a box, COCO would take the box's area for the mask's
            results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        found = self.truth.loadRes(results)
        if COCOeval_faster is None or task == "keypoints":
            evaluation = COCOeval(self.truth, found, task)
        else:
            evaluation = COCOeval_faster(self.truth, found, task, print_function=print)
        if img_ids is not None:
            evaluation.params.imgIds = img_ids
        if task == "keypoints" and self.keypoint_sigmas:
            evaluation.params.kpt_oks_sigmas = np.array(self.keypoint_sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation


class ResampledAP:
    """Box AP, per cent, of detections on images that are drawn with replacement.

    It equals pycocotools' on a dataset that contains every image as often as it was drawn, but for
    the order of detections of equal score. The images are matched once.
    """

    def __init__(self, truth: COCO, found: list[dict[str, Any]], image_ids: Sequence[int]) -> None:
        """``found`` is in COCO's result format; ``image_ids`` are those of all images."""
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
        """AP for images drawn ``counts`` times each, [n], in ascending order of their ids; NaN
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
