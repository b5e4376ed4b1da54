"""One run of the study, a process that `studies.run_study` starts."""

import argparse
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import arguments
import convert_checkpoint
import detectron2
import torch
import train_classifier
import train_net
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dgnet_det.analysis.counts import ImageCounter
from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.config import load_cfg
from dgnet_det.data import CheckedDatasetMapper, load_cfg_with_data
from dgnet_det.data.classification import build_datasets, build_test_loader
from dgnet_det.evaluation.interventions import intervene, router_hooks
from dgnet_det.export.predictor import load_predictor
from dgnet_det.modeling.backbone.dgnet import WIRINGS
from dgnet_det.modeling.classifier import build_classifier
from dgnet_det.utils.files import write_json
from studies.experiments import EXPERIMENTS, SCALES, Run
from studies.runs import RESULT
from studies.tree_crowns import find_weights
from studies.wirings import REDUCED

COUNTED_IMAGES = 20


def train(tool: Callable[[list[str]], None], command: list[str], folder: Path) -> dict[str, Any]:
    """Train by a tool, from the last checkpoint of an interrupted run on; what it wrote as
    JSON."""
    metrics = folder / "study-metrics.json"
    if not metrics.exists():
        resume = ["--resume"] * (folder / "last_checkpoint").exists()
        tool([*command, *resume, "--json", str(metrics), "OUTPUT_DIR", str(folder)])
    return json.loads(metrics.read_text())


def train_detector(run: Run, folder: Path) -> dict[str, float]:
    """Pretrain, convert, fine-tune; the metrics, in per cent."""
    metrics = {}
    command, backbone = run.detector(), str(folder / "backbone.pth")
    if "MODEL.WEIGHTS" not in command:
        source = find_weights()
        if classifier := run.classifier():
            pretrained = train(train_classifier.main, classifier, folder / "classifier")
            metrics["top1"] = pretrained["top1"]
            source = folder / "classifier/model_final.pth"
        convert_checkpoint.main([str(source), backbone, *command])
        command += ["MODEL.WEIGHTS", backbone]
    box = train(train_net.main, command, folder / "detector")["bbox"]
    # Without a detection Detectron2 has no AP.
    return metrics | {name: box[name] or 0.0 for name in ("AP", "AP50", "AP75")}


def router_outputs(model: nn.Module, loader: DataLoader, cfg: CfgNode) -> dict[str, Tensor]:
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
    outputs = router_outputs(model, loader, cfg)
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
    """Per cent. Unlike :func:`.engine.classification.evaluate`, it runs the images and nothing
    else: the cost of choices is counted by a forward pass, which hooks would hear."""
    model.eval()
    hits = [model(x.to(device)).argmax(dim=1).cpu().eq(labels) for x, labels in loader]
    return 100 * torch.cat(hits).double().mean().item()


def top1_without_own_weights(command: list[str], folder: Path) -> dict[str, float]:
    """Of a trained classifier, own top-1 less that without its own edge weights."""
    cfg = load_cfg(command[1], [*command[2:], "OUTPUT_DIR", str(folder)])
    model = build_classifier(cfg).to(cfg.MODEL.DEVICE)
    DGNetCheckpointer(model).load(str(folder / "model_final.pth"))
    top1 = without_own_outputs(model, build_test_loader(cfg, build_datasets(cfg)[1]), cfg)
    return {f"top1_own_minus_{kind}": top1["own"] - top1[kind] for kind in ("mean", "other")}


def examine(run: Run, folder: Path) -> dict[str, float]:
    """The trained detector's multiply-adds, and the spread and the use of its edge weights."""
    _, config, *overrides = run.detector()
    weights = str(folder / "detector/model_final.pth")
    cfg = load_cfg_with_data(config, [*overrides, "MODEL.WEIGHTS", weights])
    model, (dataset,) = load_predictor(cfg).model, cfg.DATASETS.TEST
    count, read = ImageCounter(model), CheckedDatasetMapper(cfg, is_train=False)
    images = [read(image)["image"] for image in DatasetCatalog.get(dataset)[:COUNTED_IMAGES]]
    figures = {"macs": sum(count(image).ran.macs for image in images) / len(images)}
    if EXPERIMENTS[run.experiment].arms[run.arm].edge_weights == "dynamic":
        result = intervene(model, cfg, dataset)
        figures |= result["spread"]
        for name, difference in result["own_minus"].items():
            figures[f"own_minus_{name}"] = difference["value"]
        if classifier := run.classifier():
            figures |= top1_without_own_weights(classifier, folder / "classifier")
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("arm")
    parser.add_argument("seed", type=int)
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("folder", type=Path, help=f"where {RESULT} is written")
    args = parser.parse_args(argv)
    WIRINGS.update(REDUCED)
    run = Run(args.experiment, args.arm, args.seed, args.scale)
    figures = train_detector(run, args.folder) | examine(run, args.folder)
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores"
    versions = f"Python {sys.version.split()[0]}, PyTorch {torch.__version__}"
    environment = f"{device}, {versions}, Detectron2 {detectron2.__version__}"
    write_json(args.folder / RESULT, {**run._asdict(), **figures, "environment": environment})
    for name in ("classifier", "detector"):
        shutil.rmtree(args.folder / name, ignore_errors=True)
    (args.folder / "backbone.pth").unlink(missing_ok=True)


if __name__ == "__main__":
    arguments.run(main)
