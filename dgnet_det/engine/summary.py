"""The summaries that a training prints before it starts and after it ends."""

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from dgnet_det.engine.hooks import PICTURE
from dgnet_det.engine.schedule import describe_schedule, doubts

FIGURES = ("AP", "AP50", "top1", "top5")


def announce(
    cfg: CfgNode, source: str, num_images: int, class_names: Sequence[str], *, evaluates: bool
) -> None:
    """Log what a fitted config will do with the images of ``source``, and warn of likely
    mistakes."""
    logger, processes = logging.getLogger(__name__), comm.get_world_size()
    table = describe_schedule(cfg, processes, num_images, class_names, evaluates=evaluates)
    logger.info("Training on %s:\n%s", source, table)
    for doubt in doubts(cfg, num_images):
        logger.warning(doubt)


def headline(results: Mapping[str, Any]) -> str:
    """The main figures of an evaluation's results, such as ``bbox/AP 18.10``."""
    figures = flatten_results_dict(results)
    shown = [name for name in figures if name.rpartition("/")[2].partition("_")[0] in FIGURES]
    return ", ".join(f"{name} {figures[name]:.2f}" for name in shown) or "not evaluated"


def summarize(
    cfg: CfgNode, results: Mapping[str, Any], best: hooks.BestCheckpointer | None, seconds: float
) -> str:
    """Tell the results of the last evaluation and the best one, time, files, and the next command.
    ``best`` is the hook that kept the best checkpoint, None if nothing was evaluated."""
    folder, weights, last = Path(cfg.OUTPUT_DIR), "model_final.pth", cfg.SOLVER.MAX_ITER
    record = "none, without an evaluation"
    if best is not None and best.best_metric is not None:
        weights = "model_best.pth"
        iteration = min(best.best_iter + 1, last)
        record = f"{best.best_metric:.2f} at iteration {iteration}: {folder / weights}"
    rows = {
        "result": f"{headline(results)}, after {last} iterations",
        "best": record,
        "time": str(timedelta(seconds=round(seconds))),
        "files": f"model_final.pth, config.yaml, metrics.json, log.txt, {PICTURE} in {folder}",
        "next": _next_command(cfg, folder, folder / weights),
    }
    return "\n".join(f"{name:<8}{text}" for name, text in rows.items())


def _next_command(cfg: CfgNode, folder: Path, weights: Path) -> str:
    if not cfg.DATASETS.TRAIN:  # a classifier
        return f"dgnet convert {weights} backbone.pth --config-file DETECTOR.yaml"
    images = "--input IMAGES"
    if cfg.DATASETS.TEST:
        images = f"--dataset {cfg.DATASETS.TEST[0]} --num 4 --truth"
    return (
        f"dgnet demo --config-file {folder / 'config.yaml'} {images}"
        f" --output {folder / 'seen'} MODEL.WEIGHTS {weights}"
    )
