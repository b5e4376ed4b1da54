#!/usr/bin/env python
"""Take edges that never open, and the nodes that only they hold, out of a trained detector.

Out of a DRNet-style detector it takes the branches that no image takes.

Runs the detector on calibration images, one at a time. Edges whose weight is below the threshold
(Eq. 5) for every image are removed, and with them their routers' outputs and, in the paper wiring,
nodes that have no input or no output left. In the residual wiring the fixed chain keeps every node.
The smaller detector is then run on the same images: unless features and detections are the same, to
rounding, nothing is written.

At inference closed edges are left out anyway, but weighed first, and a node whose outputs are
closed has run. Training, tracing and export compute every edge that there is: there a pruned
detector saves all that it has lost.

Writes FOLDER/model.pth and FOLDER/config.yaml, which names it: a config and a checkpoint as any
other, for evaluation, export and further training. tools/benchmark.py compares their latency.

Examples:
    tools/prune_model.py --dataset coco_2017_train --output output/pruned \\
        --config-file output/sparse/config.yaml MODEL.WEIGHTS output/sparse/model_final.pth
    tools/prune_model.py --input photographs/ --threshold 0.2 --output output/pruned \\
        --config-file output/config.yaml MODEL.WEIGHTS output/model_final.pth
    tools/train_net.py --eval-only --config-file output/pruned/config.yaml
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import arguments

if TYPE_CHECKING:
    from torch import nn

    from dgnet_det.analysis.counts import ImageCounts

# What is reported of both backbones: the figure, the table's row, its unit.
ROWS = (
    ("edges", "weighted edges", 1),
    ("branches", "branches", 1),
    ("blocks", "blocks", 1),
    ("params", "parameters", 1),
    ("all_open_macs", "multiply-adds, all edges open, M", 1e6),
    ("macs", "multiply-adds as run, M", 1e6),
)
MEANING = (
    "Of the backbone without FPN. Multiply-adds: means over the images; training, tracing and"
    " export compute every edge"
)


def backbone_figures(model: "nn.Module", counts: "Sequence[ImageCounts]") -> dict[str, float]:
    """The figures of :data:`ROWS`, with multiply-adds from the counts of each image."""
    from dgnet_det.analysis.counts import structure
    from dgnet_det.modeling.observation import dgnet_of, routed_stages

    stages = structure(dgnet_of(model), counts[0].size)
    return {
        "edges": sum(stage["routed_edges"] for stage in stages),
        "branches": sum(
            len(branches)
            for stage in routed_stages(model).values()
            for branches in stage.branches.values()
        ),
        "blocks": sum(stage["blocks"] for stage in stages),
        "params": counts[0].ran.params,
        "all_open_macs": statistics.fmean(count.all_open.macs for count in counts),
        "macs": statistics.fmean(count.ran.macs for count in counts),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the detector")
    parser.add_images("calibration images, or folders of images")
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
    args = parser.parse_args(argv)

    from tabulate import tabulate
    from tqdm import tqdm

    from dgnet_det.analysis.counts import ImageCounter
    from dgnet_det.checkpoint import class_names_in
    from dgnet_det.checkpoint.checkpointer import CLASS_NAMES, write_checkpoint
    from dgnet_det.config import load_cfg, read_yaml
    from dgnet_det.data import load_cfg_with_data, read_image
    from dgnet_det.errors import UserError
    from dgnet_det.export.predictor import load_predictor
    from dgnet_det.export.pruning import (
        check_equal,
        find_closed_edges,
        find_unused_branches,
        load_pruned,
        prune_config,
        raise_thresholds,
    )
    from dgnet_det.modeling.build import build_model
    from dgnet_det.modeling.observation import dynamic_graphs, routed_stages
    from dgnet_det.utils.environment import describe_environment
    from dgnet_det.utils.files import folder_written_whole, write_json

    if args.output.exists():
        raise UserError(f"--output {args.output}: exists: name a new folder")
    cfg = load_cfg_with_data(args.config_file, args.opts)
    files = [image["file_name"] for image in arguments.chosen_images(cfg, args)]
    with folder_written_whole(args.output) as folder:
        before = load_predictor(cfg)
        routed = bool(routed_stages(before.model))
        if not routed and not dynamic_graphs(before.model):
            raise UserError("MODEL.DGNET.EDGE_WEIGHTS: the plain network has no edges to prune")
        if args.threshold is not None:
            if routed:
                raise UserError("--threshold: branches have no threshold")
            raise_thresholds(before.model, args.threshold)
        images = (before.prepare(read_image(file, "BGR")) for file in files)
        progress = tqdm(images, "measuring", len(files), unit="image")
        find = find_unused_branches if routed else find_closed_edges
        unused = find(before.model, progress)
        if not unused:
            why = "every edge is open", "A --threshold closes edges, and training with"
            keys = "MODEL.DGNET.SPARSITY_WEIGHT does"
            if routed:
                why = "every branch is taken", "Training with a lower"
                keys = "MODEL.DRNET.BUDGET leaves some out"
            raise UserError(
                f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: {why[0]} for some of the {len(files)} images:"
                f" nothing to prune. {why[1]} {keys}"
            )

        pruned_cfg = prune_config(before.cfg, unused)
        model = build_model(pruned_cfg)
        load_pruned(model, before.model)
        names = class_names_in(cfg.MODEL.WEIGHTS)
        write_checkpoint({"model": model.state_dict(), CLASS_NAMES: names}, folder / "model.pth")
        pruned_cfg.MODEL.WEIGHTS = str(args.output / "model.pth")
        pruned_cfg.OUTPUT_DIR = str(args.output / "training")
        pruned_cfg.MODEL.DEVICE = read_yaml(args.config_file).MODEL.DEVICE
        (folder / "config.yaml").write_text(pruned_cfg.dump(), encoding="utf-8")

        here = ["MODEL.WEIGHTS", str(folder / "model.pth"), "MODEL.DEVICE", cfg.MODEL.DEVICE]
        after = load_predictor(load_cfg(str(folder / "config.yaml"), here))
        counters = ImageCounter(before.model), ImageCounter(after.model)
        difference, counts = 0.0, []
        for file in tqdm(files, "comparing", unit="image"):
            image = read_image(file, "BGR")
            difference = max(difference, check_equal(before, after, image, file))
            prepared = before.prepare(image)
            counts.append([count(prepared) for count in counters])

    figures = [
        backbone_figures(predictor.model, of_one)
        for predictor, of_one in zip((before, after), zip(*counts, strict=True), strict=True)
    ]
    rows = []
    for key, name, unit in ROWS:
        was, left = figures[0][key], figures[1][key]
        if not was:
            continue
        digits = 0 if unit == 1 else 2
        values = [f"{x / unit:,.{digits}f}" for x in (was, left)]
        rows.append([name, *values, f"{1 - left / was:.1%}"])
    headers = [f"{len(files)} images", "before", "after", "saved"]
    print(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, stralign="right"))
    print(f"{MEANING}.")
    print(f"largest difference of a feature map: {difference:.1e} of its largest value")
    print(f"pruned: {', '.join(unused)}")
    if not routed and not figures[1]["edges"]:
        print("no weighted edge is left: this is the plain network")
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
                "pruned": unused,
                "largest_difference": difference,
                "meaning": MEANING,
                "before": figures[0],
                "after": figures[1],
                "environment": describe_environment(),
            },
        )


if __name__ == "__main__":
    arguments.run(main)
