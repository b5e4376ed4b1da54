"""The linear rule, against Detectron2's own scaling and figures worked out by hand."""

import re
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from helpers.configs import DETECTORS, ROOT

from dgnet_det.config import load_cfg, read_yaml
from dgnet_det.engine.schedule import (
    describe_schedule,
    doubts,
    fit_classifier_schedule,
    fit_schedule,
)
from dgnet_det.errors import UserError

COCO = str(ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml")
TREES = str(
    ROOT / "configs/Tree-Crowns/faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml"
)  # fmt: skip


def fitted(config: str, processes: int, images: int, *opts: str) -> CfgNode:
    """As tools/train_net.py fits a YAML and the overrides of its command line."""
    cfg = load_cfg(config, opts)
    return fit_schedule(cfg, processes, images, recipe=read_yaml(config), given=opts[::2])


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("config", DETECTORS, ids=lambda path: path.stem)
def test_without_overrides_detectron2_scales_the_same(config: Path, processes: int) -> None:
    expected = DefaultTrainer.auto_scale_workers(load_cfg(str(config)), processes)
    assert fitted(str(config), processes, 118000) == expected


def values(cfg: CfgNode) -> dict:
    solver = cfg.SOLVER
    return {
        "batch": solver.IMS_PER_BATCH, "lr": round(solver.BASE_LR, 9),
        "iterations": solver.MAX_ITER,
        "steps": tuple(solver.STEPS), "warm-up": solver.WARMUP_ITERS,
        "evaluation": cfg.TEST.EVAL_PERIOD, "checkpoint": solver.CHECKPOINT_PERIOD,
    }  # fmt: skip


# The recipe of the COCO configs: batch 16 on 8 GPUs, learning rate 0.02, 90000 iterations with
# steps at 2/3 and 8/9, a warm-up of 1000 and periods of 5000.
@pytest.mark.parametrize(
    ("processes", "opts", "expected"),
    [
        # 2 images each of 300; 50 × 150 iterations, whose tenth is less than the warm-up's 8000
        (1, ["SOLVER.EPOCHS", "50"],
         {"batch": 2, "lr": 0.0025, "iterations": 7500, "steps": (5000, 6667), "warm-up": 750,
          "evaluation": 417, "checkpoint": 417}),
        (4, ["SOLVER.EPOCHS", "50"],
         {"batch": 8, "lr": 0.01, "iterations": 1875, "steps": (1250, 1667), "warm-up": 188}),
        # as large a batch as the recipe's on one GPU
        (1, ["SOLVER.IMS_PER_BATCH", "16"],
         {"batch": 16, "lr": 0.02, "iterations": 90000, "steps": (60000, 80000), "warm-up": 1000}),
        (1, ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "3600"],
         {"batch": 4, "lr": 0.005, "iterations": 3600, "steps": (2400, 3200), "warm-up": 360,
          "evaluation": 200}),
        # what is given holds
        (1, ["SOLVER.EPOCHS", "50", "SOLVER.BASE_LR", "0.001", "SOLVER.STEPS", "(7000,)",
             "SOLVER.WARMUP_ITERS", "2000", "TEST.EVAL_PERIOD", "150",
             "SOLVER.CHECKPOINT_PERIOD", "1000"],
         {"batch": 2, "lr": 0.001, "iterations": 7500, "steps": (7000,), "warm-up": 2000,
          "evaluation": 150, "checkpoint": 1000}),
        # Detectron2's usual command for one GPU, and its default of no scaling
        (1, ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.0025"],
         {"batch": 2, "lr": 0.0025, "iterations": 720000}),
        (1, ["SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER",
             "100"],
         {"batch": 2, "lr": 0.02, "iterations": 100, "steps": (), "warm-up": 1000}),
        (1, ["SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.EPOCHS", "3"],
         {"batch": 2, "lr": 0.02, "iterations": 450, "steps": (300, 400), "warm-up": 45}),
        # 18 evaluations, one for each period of the recipe, would be more than one an epoch
        (2, ["SOLVER.EPOCHS", "4"],
         {"batch": 4, "iterations": 300, "evaluation": 75, "checkpoint": 75}),
        # nor where few iterations are given
        (2, ["SOLVER.MAX_ITER", "30"], {"batch": 4, "evaluation": 75, "checkpoint": 75}),
        # steps at 1.33 and 1.78 of 2 iterations
        (8, ["SOLVER.MAX_ITER", "2"], {"batch": 16, "steps": (1,)}),
        (8, ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,2)"], {"steps": (1,)}),
        # a period of 0 is none
        (1, ["SOLVER.EPOCHS", "1", "TEST.EVAL_PERIOD", "0"], {"iterations": 150, "evaluation": 0}),
    ],
)  # fmt: skip
def test_300_images(processes: int, opts: list[str], expected: dict) -> None:
    cfg = fitted(COCO, processes, 300, *opts)
    assert {key: values(cfg)[key] for key in expected} == expected


def test_a_recipe_with_a_longer_warm_up_keeps_its_share() -> None:
    assert values(fitted(TREES, 1, 234, "SOLVER.EPOCHS", "1")) == {
        "batch": 4, "lr": 0.01, "iterations": 59, "steps": (44, 53), "warm-up": 7,
        "evaluation": 59, "checkpoint": 59,
    }  # fmt: skip


@pytest.mark.parametrize(
    "opts",
    [
        ["SOLVER.EPOCHS", "7"],
        ["SOLVER.EPOCHS", "7", "SOLVER.WARMUP_ITERS", "2000", "SOLVER.IMS_PER_BATCH", "6"],
        ["SOLVER.MAX_ITER", "1000", "SOLVER.BASE_LR", "0.3"],
        ["SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.EPOCHS", "7"],
        [],
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_the_written_config_fits_already(opts: list[str], processes: int, tmp_path: Path) -> None:
    """The trainer fits once more, and a run from OUTPUT_DIR/config.yaml is the same run."""
    cfg = fitted(COCO, processes, 301, *opts)
    assert cfg.is_frozen()
    assert fit_schedule(cfg, processes, 301) == cfg
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    again = fitted(str(path), processes, 301)
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_an_iteration_number_replaces_the_epochs_of_a_config(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(fitted(COCO, 1, 300, "SOLVER.EPOCHS", "50").dump())
    cfg = fitted(str(path), 1, 300, "SOLVER.MAX_ITER", "750")
    assert cfg.SOLVER.EPOCHS == 0
    assert values(cfg)["steps"] == (500, 667)


@pytest.mark.parametrize(
    ("processes", "opts", "message"),
    [
        (1, ["SOLVER.EPOCHS", "5", "SOLVER.MAX_ITER", "9"], "SOLVER.EPOCHS and SOLVER.MAX_ITER"),
        (2, ["SOLVER.IMS_PER_BATCH", "3"], "SOLVER.IMS_PER_BATCH 3: not a multiple of the 2"),
        (
            1,
            ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"],
            "LR_SCHEDULER_NAME 'WarmupPolyLR': choose",
        ),
        (1, ["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH 0: give at least 1"),
        (1, ["SOLVER.EPOCHS", "-1"], "SOLVER.EPOCHS -1: give at least 0"),
        (1, ["SOLVER.REFERENCE_WORLD_SIZE", "3"], "IMS_PER_BATCH 16: not a multiple of SOLVER.REF"),
    ],
)
def test_mistakes(processes: int, opts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fitted(COCO, processes, 300, *opts)


def test_the_description_says_it_all() -> None:
    cfg = fitted(COCO, 2, 300, "SOLVER.EPOCHS", "50")
    text = describe_schedule(cfg, 2, 300, ["apple", "fig", "pear"], evaluates=True)
    rows = dict(line.split("  ", 1) for line in text.splitlines())
    assert {key: value.strip() for key, value in rows.items()} == {
        "images": "300",
        "classes": "3: apple, fig, pear",
        "batch": "4 (2 processes × 2)",
        "learning rate": "0.005, after 375 iterations of warm-up; × 0.1 at iterations 2500, 3333",
        "iterations": "3750: 50 passes over the images",
        "evaluation": "every 208 iterations",
        "checkpoint": "every 208 iterations",
    }


@pytest.mark.parametrize(
    ("images", "opts", "said"),
    [
        (300, [], "SOLVER.EPOCHS"),
        (12, ["SOLVER.EPOCHS", "2"], "more than all 12 images"),
        (118000, ["SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", "8"],
         r"SOLVER.BASE_LR 0.02 is not scaled to the batch of 8: .* would be 0.01. SOLVER.REF"),
    ],
)  # fmt: skip
def test_what_looks_like_a_mistake_is_said(images: int, opts: list[str], said: str) -> None:
    (doubt,) = doubts(fitted(COCO, 8, images, *opts), images)
    assert re.search(said, doubt)
    assert doubts(fitted(COCO, 8, 118000), 118000) == []


def test_the_end_of_a_cosine_scales_too() -> None:
    """So that it ends at the recipe's share of the start."""
    opts = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.IMS_PER_BATCH", "1"]
    recipe = read_yaml(COCO)
    recipe.SOLVER.BASE_LR_END = 0.002
    cfg = recipe.clone()
    cfg.merge_from_list(opts)
    fit = fit_schedule(cfg, 1, 300, recipe=recipe, given=opts[::2])
    assert pytest.approx(0.1) == fit.SOLVER.BASE_LR_END / fit.SOLVER.BASE_LR
    cfg.SOLVER.BASE_LR_END = 0.03
    with pytest.raises(UserError, match=r"SOLVER.BASE_LR_END 0.03: more than SOLVER.BASE_LR"):
        fit_schedule(cfg, 1, 300, recipe=recipe, given=[*opts[::2], "SOLVER.BASE_LR_END"])


IMAGENET = str(ROOT / "configs/ImageNet-Classification/DG_R_50.yaml")


def test_a_classifier_scales_as_a_detector_does() -> None:
    """An epoch of ImageNet is 1251.1 batches of 1024 images."""

    def fitted(processes: int, images: int, *opts: str) -> dict:
        cfg, recipe = load_cfg(IMAGENET, opts), read_yaml(IMAGENET)
        cfg = fit_classifier_schedule(cfg, processes, images, recipe=recipe, given=opts[::2])
        assert fit_classifier_schedule(cfg, processes, images) == cfg
        return {key: value for key, value in values(cfg).items() if key != "steps"}

    assert fitted(8, 1281167) == {
        "batch": 1024, "lr": 0.4, "iterations": 125114, "warm-up": 6256, "evaluation": 1252,
        "checkpoint": 1252,
    }  # fmt: skip
    assert fitted(1, 1200, "SOLVER.IMS_PER_BATCH", "12", "SOLVER.EPOCHS", "20") == {
        "batch": 12, "lr": 0.0046875, "iterations": 2000, "warm-up": 500, "evaluation": 100,
        "checkpoint": 100,
    }  # fmt: skip
