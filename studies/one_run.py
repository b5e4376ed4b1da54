"""One run of the study, a process that `studies.run_study` starts."""

import argparse
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dgnet_cli import arguments, convert_checkpoint, train_net
from dgnet_det.data import load_cfg_with_data
from dgnet_det.evaluation.interventions import intervene, router_hooks
from dgnet_det.export.predictor import load_predictor
from dgnet_det.utils.environment import describe_environment
from dgnet_det.utils.files import write_json
from studies import ROOT, mixed_kinds
from studies.domains import training
from studies.experiments import EXPERIMENTS, Run
from studies.runs import RESULT
from studies.tree_crowns import find_weights

KINDS_CONFIG = ROOT / "configs/Mixed-Kinds/faster_rcnn_DG_MobileNetV2_residual_FPN_mixed_kinds.yaml"


def train(tool: Callable[[list[str]], None], command: list[str], folder: Path) -> dict[str, Any]:
    """Train by a tool, from the last checkpoint of an interrupted run on; what it wrote as
    JSON."""
    metrics = folder / "study-metrics.json"
    if not metrics.exists():
        resume = ["--resume"] * (folder / "last_checkpoint").exists()
        tool([*command, *resume, "--json", str(metrics), "OUTPUT_DIR", str(folder)])
    return json.loads(metrics.read_text())


def kinds(run: Run, folder: Path, more: Sequence[str] = ()) -> dict[str, Any]:
    """Fine-tune a detector on the mixed kinds; its AP by kind, and that with other edge weights in
    all images and in those of one kind."""
    weights, config = str(folder / "backbone.pth"), ["--config-file", str(KINDS_CONFIG)]
    opts = ["SEED", str(run.seed), "MODEL.DGNET.EDGE_WEIGHTS", run.arm, *more]
    convert_checkpoint.main([str(find_weights()), weights, *config, *opts])
    command = [*config, *opts, "MODEL.WEIGHTS", weights]
    box = train(train_net.main, command, folder / "detector")["bbox"]
    figures: dict[str, Any] = {"AP": box["AP"]}
    figures["AP_by_kind"] = {kind: box[f"AP-{kind}"] for kind in mixed_kinds.KINDS}
    if run.arm != "dynamic":
        return figures
    trained = str(folder / "detector/model_final.pth")
    cfg = load_cfg_with_data(str(KINDS_CONFIG), [*opts, "MODEL.WEIGHTS", trained])
    model, (dataset,) = load_predictor(cfg).model, cfg.DATASETS.TEST
    images = DatasetCatalog.get(dataset)
    result = intervene(model, cfg, dataset, images)
    figures |= {"spread": result["spread"], "own_minus": result["own_minus"]}
    figures["own_minus_by_kind"] = {
        kind: intervene(
            model, cfg, dataset, [i for i in images if Path(i["file_name"]).name.startswith(kind)]
        )["own_minus"]
        for kind in mixed_kinds.KINDS
    }
    return figures


def _router_outputs(model: nn.Module, loader: DataLoader, cfg: CfgNode) -> dict[str, Tensor]:
    """What a classifier's routers return for all images of a loader, [n, K] by the router's
    name."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    with router_hooks(model, lambda name, output: parts[name].append(output)):
        _top1(model, loader, cfg.MODEL.DEVICE)
    return {name: torch.cat(batches) for name, batches in parts.items()}


def without_own_outputs(model: nn.Module, loader: DataLoader, cfg: CfgNode) -> dict[str, float]:
    """A classifier's top-1 with what its routers return for each image, with the mean over all
    images (of choices, the most frequent one), and with what they return for the image before.
    There are many more test images than a detector has, so a smaller effect shows."""
    outputs = _router_outputs(model, loader, cfg)
    mean = {name: all_.mean(dim=0) for name, all_ in outputs.items()}
    sizes = [len(labels) for _, labels in loader]
    other = {name: iter(all_.roll(1, dims=0).split(sizes)) for name, all_ in outputs.items()}
    instead: dict[str, Callable[[str, Tensor], Tensor | None]] = {
        "own": lambda name, own: None,
        "mean": lambda name, own: mean[name].expand_as(own),
        "other": lambda name, own: next(other[name]),
    }
    top1 = {}
    for kind, hook in instead.items():
        with router_hooks(model, hook):
            top1[kind] = _top1(model, loader, cfg.MODEL.DEVICE)
    return top1


@torch.no_grad()
def _top1(model: nn.Module, loader: DataLoader, device: str) -> float:
    """Per cent. Unlike :func:`.classifier_metrics`, it only runs the images: the cost of
    choices is counted by a forward pass, which hooks would hear."""
    model.eval()
    hits = [model(x.to(device)).argmax(dim=1).cpu().eq(labels) for x, labels in loader]
    return 100 * torch.cat(hits).double().mean().item()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("arm")
    for name in Run._fields[2:]:
        parser.add_argument(name, type=int)
    parser.add_argument("folder", type=Path, help=f"where {RESULT} is written")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    run = Run(*(getattr(args, name) for name in Run._fields))
    started = time.process_time()
    if run.experiment == "kinds":
        figures = kinds(run, args.folder)
    else:
        figures = training.run(
            run.arm, num_domains=run.num_domains, epochs=run.epochs, seed=run.seed
        )
    seconds = round(time.process_time() - started)
    result = {**run._asdict(), **figures, "cpu_seconds": seconds}
    write_json(args.folder / RESULT, {**result, "environment": describe_environment()})
    shutil.rmtree(args.folder / "detector", ignore_errors=True)
    (args.folder / "backbone.pth").unlink(missing_ok=True)


if __name__ == "__main__":
    arguments.run(main)
