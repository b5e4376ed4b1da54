"""One run of the study: pretrain, convert, fine-tune, intervene. `studies.run_study` starts it."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import arguments

from studies.experiments import EXPERIMENTS, SCALES, Run

RESULT = "run.json"


def train(tool: Callable[[list[str]], None], command: list[str], folder: Path) -> dict[str, Any]:
    """Train by a tool, from the last checkpoint of an interrupted run on; what it wrote as
    JSON."""
    metrics = folder / "study-metrics.json"
    if not metrics.exists():
        resume = ["--resume"] * (folder / "last_checkpoint").exists()
        tool([*command, *resume, "--json", str(metrics), "OUTPUT_DIR", str(folder)])
    return json.loads(metrics.read_text())


def perform(run: Run, folder: Path) -> dict[str, Any]:
    """The figures of a run."""
    import convert_checkpoint
    import detectron2
    import torch
    import train_classifier
    import train_net

    from dgnet_det.config import load_cfg
    from dgnet_det.evaluation.interventions import intervene
    from dgnet_det.export.predictor import load_predictor
    from dgnet_det.modeling.backbone.dgnet import WIRINGS
    from studies.tree_crowns import find_weights
    from studies.wirings import REDUCED

    WIRINGS.update(REDUCED)

    figures: dict[str, Any] = {}
    command, backbone = run.detector(), folder / "backbone.pth"
    if "MODEL.WEIGHTS" not in command:
        if classifier := run.classifier():
            figures["top1"] = train(train_classifier.main, classifier, folder / "classifier")[
                "top1"
            ]
            source = folder / "classifier/model_final.pth"
        else:
            source = find_weights()
        convert_checkpoint.main([str(source), str(backbone), *command])
        command += ["MODEL.WEIGHTS", str(backbone)]
    box = train(train_net.main, command, folder / "detector")["bbox"]
    # Without a detection Detectron2 has no AP.
    figures |= {name: box[name] or 0.0 for name in ("AP", "AP50", "AP75")}

    if EXPERIMENTS[run.experiment].arms[run.arm].edge_weights == "dynamic":
        weights = ["MODEL.WEIGHTS", str(folder / "detector/model_final.pth")]
        cfg = load_cfg(command[1], [*command[2:], *weights])
        result = intervene(load_predictor(cfg).model, cfg, cfg.DATASETS.TEST[0])
        figures |= result.spread
        for other, difference in result.own_minus.items():
            figures[f"own_minus_{other}"] = difference.value
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    figures["environment"] = (
        f"{gpu or f'CPU, {os.cpu_count()} cores'}, Python {sys.version.split()[0]}, PyTorch"
        f" {torch.__version__}, Detectron2 {detectron2.__version__}"
    )
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("arm")
    parser.add_argument("seed", type=int)
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("folder", type=Path, help=f"where {RESULT} is written")
    args = parser.parse_args(argv)
    run = Run(args.experiment, args.arm, args.seed, args.scale)
    figures = perform(run, args.folder)

    from dgnet_det.utils.files import write_json

    write_json(args.folder / RESULT, {**run._asdict(), **figures})
    for name in ("classifier", "detector"):
        shutil.rmtree(args.folder / name, ignore_errors=True)
    (args.folder / "backbone.pth").unlink(missing_ok=True)


if __name__ == "__main__":
    arguments.run(main)
