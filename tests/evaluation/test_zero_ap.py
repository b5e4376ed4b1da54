"""Hints on an AP of 0: each with evidence that supports it, and with evidence that does not."""

import logging
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from helpers.configs import ROOT
from pycocotools.coco import COCO
from torch import nn

from dgnet_det.data import load_cfg_with_data
from dgnet_det.evaluation.coco import Evaluator
from dgnet_det.evaluation.zero_ap import Evidence, explain_zero, likely_causes

TREES = str(
    ROOT / "configs/Tree-Crowns/faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml"
)  # fmt: skip


def config(*opts: str) -> CfgNode:
    return load_cfg_with_data(TREES, ["MODEL.WEIGHTS", "x.pth", *opts])


def boxes(side: float, label: int, number: int = 10, offset: float = 0) -> list[dict[str, Any]]:
    """Square boxes, one in each image."""
    return [
        {"image_id": i, "category_id": label, "bbox": [40 + offset, 50, side, side], "score": 0.9}
        for i in range(number)
    ]


def truth(annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    numbers = range(1, len(annotations) + 1)
    coco.dataset = {
        "images": [{"id": i, "width": 256, "height": 256} for i in range(10)],
        "annotations": [
            {"area": a["bbox"][2] ** 2, "iscrowd": 0, **a, "id": i}
            for i, a in zip(numbers, annotations, strict=True)
        ],
        "categories": [{"id": 3, "name": "apple"}, {"id": 8, "name": "pear"}],
    }
    coco.createIndex()
    return coco


def frozen(mean: float = 0.0, weight: float = 1.0) -> nn.Module:
    norm = FrozenBatchNorm2d(4)
    norm.running_mean += mean
    norm.weight *= weight
    return nn.Sequential(nn.Conv2d(3, 4, 1), norm)


# A run of which nothing is known to be wrong: detections miss by place alone.
SOUND = {
    "cfg": config(),
    "model": nn.Linear(2, 2),
    "truth": truth(boxes(60, 3)),
    "found": boxes(60, 3, offset=100),
    "iterations": 400,
}


def causes(**changes: Any) -> list[str]:
    return likely_causes(Evidence(**(SOUND | changes)))


def test_a_sound_run_gives_no_hint() -> None:
    assert causes() == []
    assert causes(iterations=None) == []


@pytest.mark.parametrize(
    ("changes", "parts", "close"),
    [
        ({"truth": truth([])}, ["no objects"], {}),
        (
            {"truth": truth([a | {"iscrowd": 1} for a in boxes(60, 3)])},
            ["no objects"],
            {"truth": truth([a | {"iscrowd": 0} for a in boxes(60, 3)])},
        ),
        # every box in its place, as another class; or some as their own
        (
            {"found": boxes(60, 8)},
            ["100% of the objects", "0% as", "'apple' (10)", "'pear' (10)"],
            {"found": boxes(60, 8) + boxes(60, 3, number=5)},
        ),
        (
            {"found": boxes(7, 3, offset=100)},
            ["sides of 7 and 60 pixels"],
            {"found": boxes(20, 3, offset=100)},
        ),
        (
            {"cfg": config("SOLVER.WARMUP_ITERS", "1000")},
            ["SOLVER.WARMUP_ITERS is 1000", "400"],
            {"cfg": config("SOLVER.WARMUP_ITERS", "400")},
        ),
        ({"iterations": 60}, ["only 60 iterations"], {"iterations": 100}),
        (
            {"cfg": config("MODEL.WEIGHTS", "")},
            ["MODEL.WEIGHTS is empty", "400"],
            {"cfg": config("MODEL.WEIGHTS", ""), "iterations": 20000},
        ),
        ({"model": frozen()}, ["1 frozen", "MODEL.WEIGHTS"], {"model": frozen(mean=0.1)}),
        # Caffe2's weights fold the statistics into the affine parameters.
        ({"model": frozen()}, ["MODEL.RESNETS.NORM"], {"model": frozen(weight=0.5)}),
        (
            {"cfg": config("INPUT.FORMAT", "BGR")},
            ["in the order RGB, but INPUT.FORMAT is BGR"],
            {
                "cfg": config(
                    "INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", "[103.53,116.28,123.675]",
                    "MODEL.PIXEL_STD", "[1.0,1.0,1.0]",
                )
            },
        ),
        (
            {"cfg": config("MODEL.PIXEL_STD", "[1.0,1.0,1.0]")},
            ["MODEL.PIXEL_STD is 1"],
            {"cfg": config("MODEL.PIXEL_STD", "[58.0,57.0,57.0]")},
        ),
        (
            {"truth": truth(boxes(4, 3)), "found": boxes(4, 3, offset=100)},
            ["anchors meet only 0%", "MODEL.ANCHOR_GENERATOR.SIZES"],
            {"truth": truth(boxes(16, 3)), "found": boxes(16, 3, offset=100)},
        ),
        ({"found": []}, ["score above MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.05"], {}),
    ],
)  # fmt: skip
def test_each_cause(changes: dict, parts: list[str], close: dict) -> None:
    (line,) = causes(**changes)
    assert "\n" not in line
    for part in parts:
        assert part in line
    assert causes(**close) == []


class Evaluated(Evaluator):
    """After an evaluation, of which only this is looked at."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self.truth = truth(boxes(60, 3))
        self.found = found


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"bbox": {"AP": 0.0}}, True),
        ({"bbox": {"AP": float("nan")}}, True),
        ({"bbox": {"AP": 0.06}}, False),
        ({"box_proposals": {"AR@100": 0.0}}, False),
        ({}, False),
    ],
)
def test_hints_come_with_an_ap_of_0_alone(
    metrics: dict, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        evaluator = Evaluated(boxes(7, 3, offset=100))
        explain_zero(config(), nn.Linear(2, 2), evaluator, metrics)
    assert ("sides of 7 and 60 pixels" in caplog.text) is said
    assert ("Likely causes" in caplog.text) is said


def test_where_nothing_shows_the_next_step_is_said(caplog: pytest.LogCaptureFixture) -> None:
    evaluator = Evaluated(SOUND["found"])
    explain_zero(config(), nn.Linear(2, 2), evaluator, {"bbox": {"AP": 0.0}})
    assert "none of the usual causes" in caplog.text
