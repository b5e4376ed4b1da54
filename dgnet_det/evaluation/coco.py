"""COCO's metrics, computed by faster-coco-eval where it is installed."""

from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.cocoeval import COCOeval

try:
    from faster_coco_eval import COCOeval_faster
except ImportError:
    COCOeval_faster = None


def fast_coco_eval(truth: Any, found: Any, task: str) -> Any:
    """faster-coco-eval's counterpart of pycocotools' ``COCOeval``, for boxes and masks.

    Its metrics are equal to rounding: it leaves out the 2e-16 that pycocotools adds to a
    denominator. For keypoints, ``COCOeval`` itself: the counterpart wants annotations read by its
    own library.
    """
    if task == "keypoints":
        return COCOeval(truth, found, task)
    return COCOeval_faster(truth, found, task, print_function=print)


# Where Detectron2 puts its own compiled implementation, if it has one.
if COCOeval_faster is not None and coco_evaluation.COCOeval_opt is COCOeval:
    coco_evaluation.COCOeval_opt = fast_coco_eval


class Evaluator(COCOEvaluator):
    """Detectron2's evaluator, which also keeps what it compared.

    Attributes:
        truth: the ground truth, a ``pycocotools.coco.COCO``.
        found: the detections in COCO's result format, after :meth:`evaluate` in the main process.
    """

    def __init__(
        self, dataset_name: str, output_dir: str, keypoint_sigmas: Sequence[float] = ()
    ) -> None:
        """
        Args:
            dataset_name: in Detectron2's catalog.
            output_dir: for the detections.
            keypoint_sigmas: ``TEST.KEYPOINT_OKS_SIGMAS``; COCO's if empty.
        """
        super().__init__(dataset_name, output_dir=output_dir, kpt_oks_sigmas=keypoint_sigmas)
        self.truth = self._coco_api
        self.found: list[dict[str, Any]] = []

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        super()._eval_predictions(predictions, img_ids)
        self.found = [box for image in predictions for box in image["instances"]]
