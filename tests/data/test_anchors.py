"""How anchors fit boxes, against Detectron2's own anchors."""

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou

from dgnet_det.config import get_cfg
from dgnet_det.data import anchors


def test_against_detectron2() -> None:
    """The best overlap of each box is that of Detectron2's own anchors, all laid out."""
    sizes, ratios, strides = [[16.0], [32.0, 40.0], [64.0]], [0.5, 1.0, 2.0], [4, 8, 16]
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(60, 200, (50, 2)), rng.uniform(5, 90, (50, 2))], axis=1)
    for offset in (0.0, 0.5):
        generator = DefaultAnchorGenerator(
            sizes=sizes, aspect_ratios=[ratios], strides=strides, offset=offset
        )
        laid = generator([torch.zeros(1, 1, 400 // s, 400 // s) for s in strides])
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        overlaps = pairwise_iou(Boxes(torch.tensor(corners).float()), Boxes.cat(laid))
        expected = overlaps.max(dim=1).values.numpy()
        described = anchors.Anchors(sizes, ratios, strides, offset)
        assert anchors.best_overlaps(boxes, described) == pytest.approx(expected, abs=1e-5)


def test_no_suggestion_meets_fewer_boxes() -> None:
    """Of boxes of two sizes, the present anchors meet all; others overlap more on average, and
    miss the few large ones."""
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.MODEL.RPN.IN_FEATURES = ["p2"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[40]], [[1.0]]
    boxes = np.full((20, 4), [100.0, 100, 31, 31])
    boxes[0, 2:] = 52
    sizes = np.full((20, 2), 400.0)
    fit = anchors.compare_anchors(cfg, boxes, sizes)
    assert fit["config"]["meet"] == 1
    assert fit["suggested"] is None
    smaller = anchors.config_anchors(cfg)._replace(sizes=[[31.0]])
    overlaps = anchors.best_overlaps(boxes, smaller)
    assert overlaps.mean() > fit["config"]["overlap"] + anchors.WORTHWHILE
    assert (overlaps >= anchors.MET_IOU).mean() == 0.95


def test_retina_anchors() -> None:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 40]]
    described = anchors.config_anchors(cfg)
    assert described.strides == [8, 16, 32, 64, 128]
    assert described.sizes == [[32.0, 40.0]] * 5


def test_resized_boxes() -> None:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (100, 200, 300), 400
    sizes = np.array([[50.0, 100.0], [100.0, 50.0], [1000.0, 100.0]])
    # To a shorter side of 200; the third would be 2000 wide, so it becomes 400
    assert anchors.resize_factors(cfg, sizes).tolist() == [4, 4, 0.4]
