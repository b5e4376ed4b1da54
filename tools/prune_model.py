#!/usr/bin/env python
"""Take edges that never open, and the nodes that only they hold, out of a trained detector.

Runs the detector on calibration images, one at a time. Edges whose weight is below the threshold
(Eq. 5) for every image are removed, and with them their routers' outputs and, in the paper wiring,
nodes that have no input or no output left. In the residual wiring the fixed chain keeps every node.
The smaller detector is then run on the same images: unless features and detections are the same, to
rounding, nothing is written.

At inference closed edges are left out anyway, but weighed first, and a node whose outputs are
closed has run. Training, tracing and export compute every edge that there is: there a pruned
detector saves all that it has lost.

Writes FOLDER/model.pth and FOLDER/config.yaml, which names it: a config and a checkpoint as any
other, for evaluation, export and further training.

Examples:
    tools/prune_model.py --dataset coco_2017_train --output output/pruned \\
        --config-file output/sparse/config.yaml MODEL.WEIGHTS output/sparse/model_final.pth
    tools/prune_model.py --input photographs/ --threshold 0.2 --output output/pruned \\
        --config-file output/config.yaml MODEL.WEIGHTS output/model_final.pth
    tools/train_net.py --eval-only --config-file output/pruned/config.yaml
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from dgnet_det.checkpoint import CLASS_NAMES, class_names_in
from dgnet_det.config import load_cfg, read_yaml
from dgnet_det.data import check_datasets, find_images, read_image, spread_images
from dgnet_det.errors import UserError, run_tool
from dgnet_det.export.predictor import Predictor, detector_of, load_predictor
from dgnet_det.export.pruning import (
    REPEATS,
    compare_detectors,
    load_pruned,
    measure_open_edges,
    prune_config,
    raise_thresholds,
)
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dynamic_graphs
from dgnet_det.utils.environment import describe_environment
from dgnet_det.utils.files import folder_written_whole, write_json

# What is reported of both backbones: the field, the table's row, its unit.
ROWS = (
    ("edges", "weighted edges", 1),
    ("blocks", "blocks", 1),
    ("params", "parameters", 1),
    ("all_open_macs", "multiply-adds, all edges open, M", 1e6),
    ("macs", "multiply-adds as run, M", 1e6),
    ("seconds", "latency, ms", 1e-3),
)
MEANING = (
    "Of the backbone without FPN. Multiply-adds: means over the images; training, tracing and"
    " export compute every edge. Latency: of one image alone, median over the images, each the"
    f" fastest of {REPEATS} runs"
)


def calibration_files(cfg: CfgNode, args: argparse.Namespace) -> list[Path]:
    """The images of --input or --dataset."""
    if args.input:
        return find_images(args.input)
    check_datasets(cfg, [args.dataset])
    return [Path(image["file_name"]) for image in spread_images(args.dataset, args.num)]


def load(cfg: CfgNode, threshold: float | None) -> Predictor:
    """The detector to prune."""
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS: empty: name the checkpoint of a trained detector")
    predictor = load_predictor(cfg, whole=True)
    if not dynamic_graphs(predictor.model):
        raise UserError("MODEL.DGNET.EDGE_WEIGHTS: the plain network has no edges to prune")
    if threshold is not None:
        raise_thresholds(predictor.model, threshold)
    return predictor


def write(pruned: nn.Module, cfg: CfgNode, source: CfgNode, folder: Path, output: Path) -> None:
    """Write the detector ``pruned`` of ``cfg`` into ``folder``, which becomes ``output``.

    ``source`` is the config of the detector that it comes from, as on the command line.
    """
    folder.mkdir()
    checkpoint: dict[str, Any] = {"model": pruned.state_dict()}
    if names := class_names_in(source.MODEL.WEIGHTS):
        checkpoint[CLASS_NAMES] = names
    torch.save(checkpoint, folder / "model.pth")
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(output / "model.pth"), str(output / "training")
    (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML of the detector")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="calibration images, or folders of images"
    )
    source.add_argument("--dataset", metavar="NAME", help="the same of a registered dataset")
    parser.add_argument(
        "--num",
        type=int,
        default=sys.maxsize,
        metavar="N",
        help="at most so many images of the dataset, spread evenly over it (default: all)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="raise lower thresholds τ to this first, which changes the detector: see"
        " tools/sweep_thresholds.py for what that costs",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="to write; it must not exist"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    args = parser.parse_args(argv)
    if args.output.exists():
        raise UserError(f"--output {args.output}: exists: name a new folder")

    cfg = load_cfg(args.config_file, args.opts)
    files = calibration_files(cfg, args)
    predictor = load(cfg, args.threshold)
    deployed = copy.deepcopy(predictor)
    detector = detector_of(deployed)
    images = (detector.prepare(read_image(file, "BGR")) for file in files)
    progress = tqdm(images, desc="measuring edges", total=len(files), unit="image")
    closed = measure_open_edges(deployed.model, progress).closed()
    if not closed:
        raise UserError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: every edge is open for some of the {len(files)}"
            " images: nothing to prune. --threshold closes edges, and training with"
            " MODEL.DGNET.SPARSITY_WEIGHT does"
        )

    pruned_cfg = prune_config(predictor.cfg, closed)
    pruned_model = build_model(pruned_cfg).eval()
    load_pruned(pruned_model, predictor.model)
    pruned_cfg.MODEL.DEVICE = read_yaml(args.config_file).MODEL.DEVICE
    with folder_written_whole(args.output) as folder:
        write(pruned_model, pruned_cfg, cfg, folder, args.output)
        weights = ["MODEL.WEIGHTS", str(folder / "model.pth"), "MODEL.DEVICE", cfg.MODEL.DEVICE]
        pruned = load_predictor(load_cfg(str(folder / "config.yaml"), weights), whole=True)
        comparison = compare_detectors(predictor, pruned, tqdm(files, "comparing", unit="image"))
    rows = []
    for field, name, unit in ROWS:
        before, after = getattr(comparison.before, field), getattr(comparison.after, field)
        digits = 0 if unit == 1 else 2
        values = [f"{x / unit:,.{digits}f}" for x in (before, after)]
        rows.append([name, *values, f"{1 - after / before:.1%}"])
    headers = [f"{len(files)} images", "before", "after", "saved"]
    print(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, stralign="right"))
    print(f"{MEANING}.")
    print(f"largest difference of a feature map: {comparison.difference:.1e} of its largest value")
    print(f"pruned: {', '.join(pruned_cfg.MODEL.DGNET.PRUNED_EDGES)}")
    print(f"written to {args.output}")
    if args.json:
        write_json(
            args.json,
            {
                "config_file": args.config_file,
                "weights": cfg.MODEL.WEIGHTS,
                "output": str(args.output),
                "num_images": len(files),
                "threshold": args.threshold,
                "pruned_edges": pruned_cfg.MODEL.DGNET.PRUNED_EDGES,
                "largest_difference": comparison.difference,
                "meaning": MEANING,
                "before": comparison.before._asdict(),
                "after": comparison.after._asdict(),
                "environment": describe_environment(),
            },
        )


if __name__ == "__main__":
    run_tool(main)
