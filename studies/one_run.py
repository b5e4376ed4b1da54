"""One run of the study, a process that `studies.run_study` starts."""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog

from dgnet_cli import arguments, convert_checkpoint, train_net
from dgnet_det.data import load_cfg_with_data
from dgnet_det.evaluation.interventions import intervene
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
