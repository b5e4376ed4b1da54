"""Blocks of MobileNetV2 that may be skipped, on tree crowns."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from dgnet_cli import convert_checkpoint, train_net
from dgnet_det.analysis.benchmark import run_and_time
from dgnet_det.analysis.counts import ImageCounter
from dgnet_det.checkpoint.checkpointer import write_checkpoint
from dgnet_det.data import CheckedDatasetMapper, load_cfg_with_data, spread_images
from dgnet_det.evaluation.interventions import intervene
from dgnet_det.export.predictor import load_predictor
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import dgnet_of
from studies import ROOT
from studies.one_run import train
from studies.routing import Run, rarer_branches
from studies.tree_crowns import FOLDER, find_photographs, find_weights, write_tree_crowns

DETECTOR = "configs/Study/tree_crowns_detector.yaml"
BUDGETS = (1.0, 0.85, 0.7, 0.6)
TIMED_IMAGES = 20
REPEATS = 5
COUNTED_IMAGES = 100  # of the training's, for the most frequent choices


def write_data() -> None:
    """The tiles, unless they are there."""
    if not FOLDER.exists():
        write_tree_crowns(FOLDER, find_photographs())


def overrides(run: Run, pruned: Sequence[str]) -> list[str]:
    """Of the detector's config."""
    common = ["SEED", str(run.seed), "MODEL.DGNET.WIRING", "residual"]
    if run.arm == "plain":
        return [*common, "MODEL.DGNET.EDGE_WEIGHTS", "none"]
    routed = [*common, "MODEL.BACKBONE.NAME", "build_drnet_fpn_backbone"]
    if run.arm == "pruned":
        return [*routed, "MODEL.DRNET.PRUNED_BRANCHES", str(list(pruned))]
    weight = "5.0" if run.budget < 1 else "0.0"
    return [
        *routed, "SOLVER.ROUTER_LR_FACTOR", "10.0",
        "MODEL.DRNET.BUDGET", str(run.budget), "MODEL.DRNET.BUDGET_WEIGHT", weight,
    ]  # fmt: skip


def perform(run: Run, folder: Path, pruned: Sequence[str], more: Sequence[str]) -> dict[str, Any]:
    """Train and examine one network; its figures."""
    config, opts = str(ROOT / DETECTOR), [*overrides(run, pruned), *more]
    weights = folder / "backbone.pth"
    whole = [*overrides(run._replace(arm="plain"), ()), *more]
    convert_checkpoint.main([str(find_weights()), str(weights), "--config-file", config, *whole])
    if pruned:
        drop_absent(weights, build_model(load_cfg_with_data(config, opts)))
    command = ["--config-file", config, *opts, "MODEL.WEIGHTS", str(weights)]
    box = train(train_net.main, command, folder / "detector")["bbox"]
    figures = {name: box[name] or 0.0 for name in ("AP", "AP50", "AP75")}
    trained = ["MODEL.WEIGHTS", str(folder / "detector/model_final.pth")]
    return figures | examine(run, load_cfg_with_data(config, [*opts, *trained]))


def drop_absent(weights: Path, model: nn.Module) -> None:
    """Leave out of a checkpoint what a pruned model does not have."""
    checkpoint, names = torch.load(weights, weights_only=True), model.state_dict().keys()
    checkpoint["model"] = {n: x for n, x in checkpoint["model"].items() if n in names}
    write_checkpoint(checkpoint, weights)


@torch.no_grad()
def examine(run: Run, cfg: CfgNode) -> dict[str, Any]:
    """Multiply-adds, choices, their use, and the latency of a trained detector."""
    model, (dataset,) = load_predictor(cfg).model, cfg.DATASETS.TEST
    read = CheckedDatasetMapper(cfg, is_train=False)
    test, count = [read(x)["image"] for x in DatasetCatalog.get(dataset)], ImageCounter(model)
    macs = [count(image).ran.macs for image in test]
    figures: dict[str, Any] = {
        "macs": statistics.fmean(macs),
        "macs_deviation": statistics.pstdev(macs),
    }
    if run.arm != "plain":
        figures["latency"] = latency(model, cfg, test[:TIMED_IMAGES])
    if run.arm == "routed":
        images = spread_images(cfg.DATASETS.TRAIN[0], COUNTED_IMAGES)
        batches = ([{"image": read(x)["image"]}] for x in images)
        figures["rarer_branches"] = rarer_branches(model, batches)
        result = intervene(model, cfg, dataset)
        figures |= {"entropy": result["spread"]["entropy"], "by_choices": result["ap"]}
    return figures


def latency(model: nn.Module, cfg: CfgNode, images: Sequence[torch.Tensor]) -> dict[str, float]:
    """Seconds of the backbone for an image, and of a plain one that takes turns with it: the median
    over the images, and the median of the ratios."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DGNET.EDGE_WEIGHTS = "build_dgnet_fpn_backbone", "none"
    plain = dgnet_of(optimize_for_inference(build_model(cfg)))
    backbone, device = dgnet_of(optimize_for_inference(model)), torch.device(cfg.MODEL.DEVICE)
    seconds = []
    for image in images:
        batch = model.preprocess_image([{"image": image}]).tensor  # type: ignore[operator]
        for _ in range(REPEATS):
            seconds.append([run_and_time(device, part, batch)[1] for part in (backbone, plain)])
    return {
        "seconds": statistics.median(own for own, _ in seconds),
        "plain_seconds": statistics.median(other for _, other in seconds),
        "ratio": statistics.median(own / other for own, other in seconds),
    }
