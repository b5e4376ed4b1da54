#!/usr/bin/env python
"""Count a model's parameters, multiply-adds and activations and print its graphs.

No dataset and no weights are needed, except for what closed edges save on real images: with
--images or --dataset, MODEL.WEIGHTS is loaded and each image's backbone multiply-adds are counted
as they run, closed edges and absent nodes left out.

Examples:
    C=configs/COCO-Detection/faster_rcnn_DG_R_50_FPN_1x.yaml
    tools/analyze_model.py --config-file $C --tasks parameter flop activation structure
    tools/analyze_model.py --config-file $C --tasks flop --input-size 224 224 MODEL.RESNETS.NORM BN
    tools/analyze_model.py --config-file $C --tasks flop --dataset coco_2017_val --json macs.json
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from fvcore.nn import parameter_count, parameter_count_table
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from dgnet_det import analysis
from dgnet_det.config import load_cfg, mark_overrides
from dgnet_det.data import check_datasets, find_images, read_image, spread_images
from dgnet_det.errors import UserError, run_tool
from dgnet_det.export.predictor import load_predictor
from dgnet_det.utils.files import write_json

TASKS = ("parameter", "flop", "activation", "structure")
DYNAMIC_FIELDS = ("macs", "conv_macs", "all_open_macs")
COUNT_FIELDS = {"flop": ("conv_macs", "macs"), "activation": ("activations",)}


def static_report(
    model: nn.Module, size: analysis.Size, tasks: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What the tasks ask for of the backbone, and of the model as a whole and in parts."""
    fields = [field for task in tasks for field in COUNT_FIELDS.get(task, ())]
    backbone = analysis.backbone_of(model)
    of_backbone: dict[str, int] = {}
    of_parts: dict[str, dict[str, int]] = {}
    if "parameter" in tasks:
        of_backbone["params"] = parameter_count(backbone)[""]
        for name, count in analysis.params_by_part(model).items():
            of_parts[name] = {"params": count}
    if fields:
        counts = analysis.backbone_counts(backbone, size)
        of_backbone |= {field: getattr(counts, field) for field in fields}
        print("running the whole model on one image …", file=sys.stderr)
        for name, counts in analysis.model_counts(model, size).items():
            of_parts.setdefault(name, {}).update({f: getattr(counts, f) for f in fields})
    total = of_parts.pop("total", {})
    return {"backbone": of_backbone, "model": {**total, "parts": of_parts}}


def dynamic_report(cfg: CfgNode, files: Sequence[Path]) -> dict[str, Any]:
    """The backbone's multiply-adds on each image, as they run."""
    if not cfg.MODEL.WEIGHTS:
        print("MODEL.WEIGHTS is empty: the routers are untrained", file=sys.stderr)
    predictor = load_predictor(cfg)
    images = []
    for file in tqdm(files, desc="images", unit="image"):
        pixels = read_image(file, cfg.INPUT.FORMAT)
        pixels = predictor.aug.get_transform(pixels).apply_image(pixels)
        image = torch.tensor(pixels.transpose(2, 0, 1))
        counts = analysis.image_counts(predictor.model, image)
        images.append(
            {
                "file": str(file),
                "padded_size": list(counts.size),
                "macs": counts.ran.macs,
                "conv_macs": counts.ran.conv_macs,
                "all_open_macs": counts.all_open.macs,
            }
        )
    report: dict[str, Any] = {"num_images": len(images), "weights": cfg.MODEL.WEIGHTS}
    for key in DYNAMIC_FIELDS:
        values: list[int] = [image[key] for image in images]  # type: ignore[misc]
        report[key] = {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}
    return {**report, "images": images}


def chosen_files(cfg: CfgNode, args: argparse.Namespace) -> list[Path]:
    """The images of --images or --dataset; none without either.

    Raises:
        UserError: they do not exist, or the config has no edges that close on them.
    """
    if not args.images and not args.dataset:
        return []
    if analysis.is_classifier(cfg):
        raise UserError("--images, --dataset: these take the config of a detector")
    if cfg.MODEL.DGNET.EDGE_WEIGHTS == "none":
        raise UserError(
            "MODEL.DGNET.EDGE_WEIGHTS none: no edge can close; drop --images, --dataset"
        )
    if args.images:
        return find_images(args.images)[: args.num_images]
    check_datasets(cfg, [args.dataset])
    return [Path(image["file_name"]) for image in spread_images(args.dataset, args.num_images)]


def print_report(report: dict[str, Any]) -> None:
    """The report as tables, counts in millions."""

    def millions(counts: dict[str, Any]) -> list[str]:
        return [f"{value / 1e6:.3f}" for value in counts.values() if isinstance(value, int)]

    height, width = report["input_size"]
    print(
        f"{report['config_file']}: family {report['family']}, wiring {report['wiring']},"
        f" edge weights {report['edge_weights']}, norm {report['norm']}\n"
    )
    if report["backbone"]:
        backbone, model = report["backbone"], dict(report["model"])
        parts = model.pop("parts")
        rows = [[f"backbone, {height} × {width}", *millions(backbone)]]
        rows += [[f"model: {name}", *millions(counts)] for name, counts in parts.items()]
        rows.append(["model", *millions(model)])
        headers = ["in millions", *backbone]
        print(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, stralign="right"))
        print()
    if "structure" in report:
        print(tabulate(report["structure"], headers="keys", tablefmt="pipe"), end="\n\n")
    if "dynamic" in report:
        dynamic = report["dynamic"]
        rows = [
            [key, f"{dynamic[key]['mean'] / 1e6:.3f} ± {dynamic[key]['std'] / 1e6:.3f}"]
            for key in DYNAMIC_FIELDS
        ]
        headers = [f"backbone, {dynamic['num_images']} images", "millions, mean ± std"]
        print(tabulate(rows, headers, tablefmt="pipe"), end="\n\n")
    for term, meaning in report["counted"].items():
        print(f"{term}: {meaning}.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a YAML of configs/")
    parser.add_argument("--tasks", required=True, nargs="+", choices=TASKS, help="what to report")
    parser.add_argument(
        "--input-size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="image size of the counts that need no images (default: 800 1333; a classifier's own"
        " for a classifier)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--images", nargs="+", metavar="PATH", help="image files or folders to run the backbone on"
    )
    source.add_argument("--dataset", metavar="NAME", help="the same with a registered dataset")
    parser.add_argument(
        "--num-images",
        type=int,
        default=sys.maxsize,
        metavar="N",
        help="at most so many, spread evenly over a dataset (default: all)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides, last")
    args = parser.parse_args(mark_overrides(argv))
    if min(args.input_size or (1,)) < 1 or args.num_images < 1:
        raise UserError("--input-size, --num-images: give numbers of at least 1")

    cfg = load_cfg(args.config_file, args.opts)
    files = chosen_files(cfg, args)
    model = analysis.build_for_analysis(cfg)
    own_size = [cfg.CLASSIFICATION.SIZE] * 2 if analysis.is_classifier(cfg) else [800, 1333]
    height, width = args.input_size or own_size
    size = height, width
    report = {
        "config_file": args.config_file,
        "overrides": args.opts,
        "family": cfg.MODEL.DGNET.FAMILY,
        "wiring": cfg.MODEL.DGNET.WIRING,
        "edge_weights": cfg.MODEL.DGNET.EDGE_WEIGHTS,
        "norm": cfg.MODEL.RESNETS.NORM,
        "input_size": list(size),
        "counted": {k: v for k, v in analysis.COUNTED.items() if k != "dynamic" or files},
        **static_report(model, size, args.tasks),
    }
    if "structure" in args.tasks:
        graphs = analysis.structure(analysis.backbone_of(model), size)
        report["structure"] = [graph._asdict() for graph in graphs]
    if files:
        report["dynamic"] = dynamic_report(cfg, files)

    if "parameter" in args.tasks:
        print(parameter_count_table(model), end="\n\n")
    print_report(report)
    if args.json:
        write_json(args.json, report)
        print(f"written to {args.json}")


if __name__ == "__main__":
    run_tool(main)
