"""Likely causes of an AP of 0."""

import contextlib
import copy
import io
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import get_event_storage
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from dgnet_det.checkpoint.converting import IMAGENET_MEAN_RGB
from dgnet_det.config import NUM_CLASSES_KEYS
from dgnet_det.data.anchors import compare_anchors
from dgnet_det.evaluation.coco import Evaluator

ZERO_AP = 0.05  # per cent, which is printed as 0.0
FEW_ITERATIONS = 100
FEW_ITERATIONS_FROM_NOTHING = 10_000
MATCH_IOU = 0.5
FEW_MET = 0.25  # share of the boxes that anchors meet
WRONG_SCALE = 4.0  # between the sides of detected and true boxes


class Evidence(NamedTuple):
    """The facts of a run after its evaluation."""

    cfg: CfgNode
    model: nn.Module
    truth: COCO
    found: list[dict[str, Any]]  # detections in COCO's result format
    iterations: int | None = None  # of this training; None where a checkpoint is evaluated

    def objects(self) -> list[dict[str, Any]]:
        """The annotations without crowds, which do not count."""
        return [a for a in self.truth.dataset.get("annotations", ()) if not a.get("iscrowd")]


def explain_zero(
    cfg: CfgNode, model: nn.Module, evaluator: Evaluator, metrics: Mapping[str, Mapping[str, float]]
) -> None:
    """Log the likely causes if the box AP in an evaluator's ``metrics`` is 0 or undefined."""
    if metrics.get("bbox", {}).get("AP", math.inf) >= ZERO_AP:
        return
    evidence = Evidence(cfg, model, evaluator.truth, evaluator.found, _iterations_done())
    causes = likely_causes(evidence) or [
        "none of the usual causes shows: look at the detections beside the truth, by dgnet demo"
    ]
    logger = logging.getLogger(__name__)
    logger.warning("The box AP is 0 or undefined. Likely causes:")
    for cause in causes:
        logger.warning("  - %s", cause)


def likely_causes(evidence: Evidence) -> list[str]:
    """A line for every cause that the evidence supports, the likeliest first."""
    if not evidence.objects():
        return ["the annotation file has no objects to compare with, so AP is not defined"]
    lines = (cause(evidence) for cause in CAUSES)
    return [line for line in lines if line is not None]


def _iterations_done() -> int | None:
    """The number of iterations done, None if this process does not train."""
    try:
        losses = get_event_storage().histories().get("total_loss")
    except AssertionError:
        return None
    return int(losses.values()[-1][1]) + 1 if losses else None


def _short_training(e: Evidence) -> str | None:
    if e.iterations is None:
        return None
    warm_up = e.cfg.SOLVER.WARMUP_ITERS
    if e.iterations < warm_up:
        return (
            f"the learning rate was still warming up: SOLVER.WARMUP_ITERS is {warm_up}, and"
            f" {e.iterations} iterations were done"
        )
    if e.iterations < FEW_ITERATIONS:
        return f"only {e.iterations} iterations were done: see SOLVER.EPOCHS"
    if not e.cfg.MODEL.WEIGHTS and e.iterations < FEW_ITERATIONS_FROM_NOTHING:
        return (
            "MODEL.WEIGHTS is empty: a detector that starts from nothing takes tens of thousands of"
            f" iterations, and {e.iterations} were done"
        )
    return None


def _frozen_norm(e: Evidence) -> str | None:
    norms = [m for m in e.model.modules() if isinstance(m, FrozenBatchNorm2d)]
    if not norms or any(n.running_mean.any() or (n.weight != 1).any() for n in norms):
        return None
    return (
        f"the {len(norms)} frozen batch norms have the statistics that they are made with: load"
        " trained MODEL.WEIGHTS, or set MODEL.RESNETS.NORM to BN"
    )


def _pixels(e: Evidence) -> str | None:
    mean, order = e.cfg.MODEL.PIXEL_MEAN, e.cfg.INPUT.FORMAT
    for other, swapped in (("BGR", IMAGENET_MEAN_RGB), ("RGB", IMAGENET_MEAN_RGB[::-1])):
        if order == other and np.allclose(mean, swapped, atol=1):
            return (
                f"MODEL.PIXEL_MEAN {mean} is in the order {order[::-1]}, but INPUT.FORMAT is"
                f" {order}: dgnet convert prints what goes with the weights"
            )
    if order == "RGB" and np.allclose(e.cfg.MODEL.PIXEL_STD, 1):
        return (
            "MODEL.PIXEL_STD is 1 with INPUT.FORMAT RGB: torchvision's and timm's weights want"
            " pixels divided by their deviation; dgnet convert prints it"
        )
    return None


def _threshold(e: Evidence) -> str | None:
    if e.found:
        return None
    group = NUM_CLASSES_KEYS.get(e.cfg.MODEL.META_ARCHITECTURE, "ROI_HEADS")
    threshold = e.cfg.MODEL[group].SCORE_THRESH_TEST
    return (
        f"nothing is found with a score above MODEL.{group}.SCORE_THRESH_TEST {threshold:g}: the"
        " classifier has not learned yet; set it to 0 to see what comes out"
    )


def _classes(e: Evidence) -> str | None:
    any_class, own_class = (_share_found(e, use_classes) for use_classes in (False, True))
    if any_class < 0.2 or own_class > any_class / 4:
        return None
    objects, found = (
        Counter(e.truth.cats[box["category_id"]]["name"] for box in boxes).most_common(1)[0]
        for boxes in (e.objects(), e.found)
    )
    return (
        f"boxes fit but classes do not: {any_class:.0%} of the objects are found, {own_class:.0%}"
        f" as what they are; most objects are {objects[0]!r} ({objects[1]}), most detections"
        f" {found[0]!r} ({found[1]}): are the categories in one order in the training data, here"
        " and in the weights?"
    )


def _share_found(e: Evidence, use_classes: bool) -> float:
    """The share of the objects that a detection overlaps, of the same class or of any."""
    if not e.found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        matching = COCOeval(e.truth, e.truth.loadRes(copy.deepcopy(e.found)), "bbox")
        matching.params.useCats = int(use_classes)
        matching.params.iouThrs = np.array([MATCH_IOU])
        matching.params.areaRng = matching.params.areaRng[:1]
        matching.evaluate()
    images = [image for image in matching.evalImgs if image]
    met = sum(np.sum((i["gtMatches"][0] > 0) & (i["gtIgnore"] == 0)) for i in images)
    return met / len(e.objects())


def _scale(e: Evidence) -> str | None:
    if not e.found:
        return None
    found, true = (
        float(np.median([np.sqrt(b["bbox"][2] * b["bbox"][3]) for b in boxes]))
        for boxes in (e.found, e.objects())
    )
    if 1 / WRONG_SCALE < found / max(true, 1e-6) < WRONG_SCALE:
        return None
    return (
        f"detected boxes have another size than the objects: median sides of {found:.3g} and"
        f" {true:.3g} pixels: are both sets' boxes in pixels of the image files?"
    )


def _anchors(e: Evidence) -> str | None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in e.truth.dataset["images"]}
    objects = [a for a in e.objects() if a["bbox"][2] > 0 and a["bbox"][3] > 0]
    if not objects:
        return None
    fit = compare_anchors(
        e.cfg,
        np.array([a["bbox"] for a in objects], dtype=float),
        np.array([sizes[a["image_id"]] for a in objects], dtype=float),
    )
    if fit["config"]["meet"] >= FEW_MET:
        return None
    mend = f": {fit['suggested']['override']} would fit better" if fit["suggested"] else ""
    return f"the anchors meet only {fit['config']['meet']:.0%} of the boxes{mend}"


CAUSES: tuple[Callable[[Evidence], str | None], ...] = (
    _classes,
    _scale,
    _short_training,
    _frozen_norm,
    _pixels,
    _anchors,
    _threshold,
)
