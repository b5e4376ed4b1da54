#!/usr/bin/env python
"""Time and peak memory of a model against baselines.

Examples:
    C=configs/COCO-Detection/faster_rcnn_
    tools/benchmark.py --config-file ${C}DG_R_50_FPN_1x.yaml --baseline stock \
        --baseline ${C}R_50_FPN_1x.yaml --mode inference --part backbone --input-size 800 1333
    tools/benchmark.py --config-file ${C}DG_R_50_residual_FPN_1x.yaml --baseline stock \
        --mode train --part model --input-size 480 640 --batch 2 --json benchmark.json

The models take turns, each in a process of its own, on the same random images. Without
MODEL.WEIGHTS all edges are open with α = 0.5. The baseline
"stock" is Detectron2's own ResNet as it ships; models of this project run as their tools run them
(optimize_for_inference). Times are of one forward pass (inference), or of forward, backward and
optimizer step (train). Memory is what the process gained over its state before the model was built:
on a CPU its resident memory at the highest (VmHWM, reset before every run; Linux only), on a GPU
what torch allocated.
KEY VALUE pairs at the end override all configs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from dgnet_det.analysis.benchmark import (
    Contestant,
    Workload,
    compare,
    environment,
    measure,
    spread,
    stock_config,
)
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError, run_tool
from dgnet_det.utils.files import write_json


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--baseline", action="append", required=True, help='a config file or "stock"; repeatable'
    )
    parser.add_argument("--mode", choices=["inference", "train"], default="inference")
    parser.add_argument("--part", choices=["backbone", "model"], default="model")
    parser.add_argument(
        "--input-size", type=int, nargs=2, default=[800, 1333], metavar=("H", "W"), help="pixels"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", help="MODEL.DEVICE of all configs")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args(argv)
    for name in ("batch", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: at least 1")
    if min(args.input_size) < 32:
        raise UserError(f"--input-size {args.input_size}: at least 32 pixels")

    opts = [*args.opts, *(["MODEL.DEVICE", args.device] if args.device else [])]
    height, width = args.input_size
    workload = Workload(args.mode, args.part, height, width, args.batch)
    cfg = load_cfg(args.config_file, opts)
    name = Path(args.config_file).stem
    contestants = [Contestant(name, cfg)]
    for baseline in args.baseline:
        if baseline == "stock":
            contestants.append(Contestant("stock", stock_config(cfg), stock=True))
        else:
            contestants.append(Contestant(Path(baseline).stem, load_cfg(baseline, opts)))
    with tqdm(total=args.repeats, desc="repeats") as bar:
        results = measure(
            contestants, workload, repeats=args.repeats, progress=lambda done: bar.update()
        )

    rows = []
    figures: dict[str, dict] = {
        "environment": environment(cfg.MODEL.DEVICE),
        "workload": workload._asdict(),
        "models": {},
        "baselines": {},
    }
    for model, measurement in results.items():
        seconds = spread(measurement.seconds)
        figures["models"][model] = {"seconds": seconds, "peak_bytes": measurement.peak_bytes}
        row = [model, _range(seconds), f"{measurement.peak_bytes / 2**20:.0f}"]
        if model != name:
            comparison = compare(results[name], measurement)
            figures["baselines"][model] = comparison
            row += [_range(comparison["ratio"]), f"{comparison['memory_ratio']:.2f}"]
        rows.append(row)
    for key, value in figures["environment"].items():
        print(f"{key}: {value}")
    headers = ["model", "seconds", "peak MiB", f"{name} / it", "memory / its"]
    print(tabulate(rows, headers, disable_numparse=True))
    if args.json:
        write_json(args.json, figures)


def _range(values: dict[str, float]) -> str:
    return f"{values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


if __name__ == "__main__":
    run_tool(main)
