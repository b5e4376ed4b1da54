"""Fit of anchors and a dataset's boxes, at the size and on the grids that the network sees.

Comparing shapes alone would mislead: an anchor of 45 pixels on a feature map of stride 32 may have
a box's shape, and yet lie 16 pixels beside it. For the tree crowns, sizes from quantiles of the
boxes come closer in shape than octaves, and meet fewer boxes (89 % against 99 %). So boxes are
compared with the anchors where they lie, and a suggestion multiplies all sizes by one factor.
"""

import json
import re
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode

# A box counts as met where an anchor overlaps it by so much (IoU). The region proposal network
# regresses well from there.
MET_IOU = 0.5
FACTORS = 2.0 ** np.arange(-3, 3.01, 0.25)  # of the config's sizes, that are tried
RATIO_SHARES = (0.1, 0.5, 0.9)  # quantiles of the boxes' ratios, that are tried as anchors' ratios
NUM_BOXES_TRIED = 5000
# A suggestion must raise the mean overlap by this much to be worth a change.
WORTHWHILE = 0.02


class Anchors(NamedTuple):
    """The anchors of a ``MODEL.ANCHOR_GENERATOR``, in pixels of the resized image."""

    sizes: list[list[float]]  # square roots of areas, a list for each feature map
    ratios: list[float]  # heights over widths
    strides: list[int]  # of the feature maps
    offset: float  # of the grid, in strides


def config_anchors(cfg: CfgNode) -> Anchors:
    """The anchors of a config, on the feature maps that its RPN or RetinaNet head reads."""
    retina = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    features = cfg.MODEL.RETINANET.IN_FEATURES if retina else cfg.MODEL.RPN.IN_FEATURES
    # "p4" and "res4" have stride 2⁴.
    strides = [2 ** int(re.sub(r"\D", "", name)) for name in features]
    generator = cfg.MODEL.ANCHOR_GENERATOR
    sizes = [list(map(float, level)) for level in generator.SIZES]
    sizes *= len(strides) // len(sizes)  # one list may stand for all maps
    return Anchors(sizes, list(map(float, generator.ASPECT_RATIOS[0])), strides, generator.OFFSET)


def best_overlaps(boxes: np.ndarray, anchors: Anchors) -> np.ndarray:
    """The IoU, [K], of each box with the anchor that overlaps it most. ``boxes`` are [K, 4] x, y,
    width and height, pixels of the resized image."""
    wh = boxes[:, 2:]
    centres = boxes[:, :2] + wh / 2
    best = np.zeros(len(boxes))
    for sizes, stride in zip(anchors.sizes, anchors.strides, strict=True):
        cells = centres / stride - anchors.offset
        distance = abs(cells - cells.round()) * stride  # of the nearest anchors' centre
        for size in sizes:
            for ratio in anchors.ratios:
                anchor = np.array([size / ratio**0.5, size * ratio**0.5])
                sides = np.minimum((wh + anchor) / 2 - distance, np.minimum(wh, anchor))
                overlap = sides.clip(0).prod(axis=1)
                best = np.maximum(best, overlap / (wh.prod(axis=1) + size**2 - overlap))
    return best


def suggest(boxes: np.ndarray, anchors: Anchors) -> Anchors:
    """The anchors that overlap boxes most on average and meet as many, with sizes multiplied by one
    factor, and with ratios that are their own or quantiles of the boxes'."""
    boxes = boxes[:: 1 + len(boxes) // NUM_BOXES_TRIED]
    ratios = np.quantile(boxes[:, 3] / boxes[:, 2], RATIO_SHARES)
    own = np.unique(ratios.round(2).clip(0.05)).tolist()
    tried = [anchors]
    for factor in FACTORS:
        sizes = [[max(1, round(s * factor)) for s in level] for level in anchors.sizes]
        tried += [anchors._replace(sizes=sizes, ratios=r) for r in (anchors.ratios, own)]
    overlaps = [best_overlaps(boxes, each) for each in tried]
    met = [(each >= MET_IOU).mean() for each in overlaps]
    means = [each.mean() if m >= met[0] else 0 for each, m in zip(overlaps, met, strict=True)]
    return tried[int(np.argmax(means))]


def resize_factors(cfg: CfgNode, image_sizes: np.ndarray) -> np.ndarray:
    """The factors, [K], by which training resizes images of widths and heights, [K, 2] pixels, for
    the middle one of ``INPUT.MIN_SIZE_TRAIN``."""
    shorter = np.median(cfg.INPUT.MIN_SIZE_TRAIN)
    if shorter == 0:  # Detectron2's sign for no resizing
        return np.ones(len(image_sizes))
    largest = cfg.INPUT.MAX_SIZE_TRAIN / image_sizes.max(axis=1)
    return np.minimum(shorter / image_sizes.min(axis=1), largest)


def compare_anchors(cfg: CfgNode, xywh: np.ndarray, image_sizes: np.ndarray) -> dict[str, Any]:
    """Compare a config's anchors with boxes that have an area, [K, 4] in pixels, K ≥ 1, of images
    whose widths and heights are ``image_sizes``, [K, 2].

    Returns:
        ``shorter_side`` that images are resized to (0: they are not); ``box_sizes``, percentiles of
        square roots of areas in pixels of the resized image; ``config``: the anchors' sizes and
        ratios, the share of boxes that they ``meet`` and the mean ``overlap``; and ``suggested``:
        the same of better ones with their ``override`` (config keys), or None.
    """
    boxes = xywh * resize_factors(cfg, image_sizes)[:, None]
    anchors = config_anchors(cfg)
    better = suggest(boxes, anchors)
    present, suggested = _fit(boxes, anchors), _fit(boxes, better)
    worthwhile = suggested["overlap"] >= present["overlap"] + WORTHWHILE
    if worthwhile and suggested["meet"] >= present["meet"]:
        suggested["override"] = (
            f"MODEL.ANCHOR_GENERATOR.SIZES '{json.dumps(better.sizes)}'"
            f" MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS '{json.dumps([better.ratios])}'"
        )
    return {
        "shorter_side": int(np.median(cfg.INPUT.MIN_SIZE_TRAIN)),
        "box_sizes": percentiles(np.sqrt(boxes[:, 2:].prod(axis=1))),
        "config": present,
        "suggested": suggested if "override" in suggested else None,
    }


def _fit(boxes: np.ndarray, anchors: Anchors) -> dict[str, Any]:
    best = best_overlaps(boxes, anchors)
    return {
        "sizes": anchors.sizes,
        "ratios": anchors.ratios,
        "meet": float((best >= MET_IOU).mean()),
        "overlap": float(best.mean()),
    }


def percentiles(values: np.ndarray) -> dict[str, float]:
    """The 5th, 25th, 50th, 75th and 95th percentile of numbers, [K]; empty where K is 0."""
    shares = (5, 25, 50, 75, 95) if len(values) else ()
    return {f"p{share}": float(np.percentile(values, share)) for share in shares}
