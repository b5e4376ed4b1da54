"""Time and peak memory of a model against baselines, and what closed edges and skipped nodes save.

Examples:
    C=configs/COCO-Detection/faster_rcnn_
    %(prog)s --config-file ${C}DG_R_50_FPN_1x.yaml --baseline stock \\
        --baseline ${C}R_50_FPN_1x.yaml --mode inference --part backbone --input-size 800 1333
    %(prog)s --config-file ${C}DG_R_50_residual_FPN_1x.yaml --baseline stock \\
        --mode train --part model --input-size 480 640 --batch 2 --json benchmark.json
    %(prog)s --config-file ${C}DG_R_50_FPN_1x.yaml --part backbone \\
        --closed 0.5 1 --skipped 0.3333 MODEL.WEIGHTS ''

The models take turns, each in a process of its own, on the same random images; ratios are of runs
side by side. Without MODEL.WEIGHTS all edges are open with α = 0.5. The baseline "stock" is
Detectron2's own ResNet as it ships; models of this project run as their tools run them
(optimize_for_inference). --closed and --skipped time the untrained network with a share closed of
the edges into each node, drawn per image, or of each graph's blocks; of a DRNet-style network, a
share of the blocks that can be skipped, drawn per image. Times are of one forward pass
(inference), or of forward, backward and optimizer step (train). Memory is what the process gained
over its state before the model was built: on a CPU its resident memory at the highest (VmHWM, reset
before every run; Linux only), on a GPU what torch allocated.
KEY VALUE pairs at the end override all configs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgnet_cli import arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the model")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="FILE",
        help='a config file or "stock"; repeatable',
    )
    parser.add_argument(
        "--closed", type=float, nargs="+", default=[], metavar="SHARE", help="of edges, 0 to 1"
    )
    parser.add_argument(
        "--skipped",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="of blocks, 0 to 1; paper wiring, or DRNet-style",
    )
    parser.add_argument("--mode", choices=["inference", "train"], default="inference")
    parser.add_argument("--part", choices=["backbone", "model"], default="model")
    parser.add_argument(
        "--input-size", type=int, nargs=2, default=[800, 1333], metavar=("H", "W"), help="pixels"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    args = parser.parse_args(argv)

    from tabulate import tabulate

    from dgnet_det.analysis.benchmark import (
        Contestant,
        Workload,
        compare_runs,
        measure,
        median_and_range,
        stock_config,
    )
    from dgnet_det.config import is_routed, load_cfg
    from dgnet_det.errors import UserError
    from dgnet_det.utils.environment import describe_environment
    from dgnet_det.utils.files import write_json

    for option in ("batch", "repeats"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} {getattr(args, option)}: at least 1")
    if min(args.input_size) < 32:
        raise UserError(f"--input-size {args.input_size}: at least 32 pixels")
    cfg = load_cfg(args.config_file, args.opts)
    shares = [*args.closed, *args.skipped]
    if any(not 0 <= share <= 1 for share in shares):
        raise UserError("--closed, --skipped: a share is between 0 and 1")
    if shares and cfg.MODEL.WEIGHTS:
        raise UserError("--closed, --skipped: these take an untrained network: MODEL.WEIGHTS ''")
    if shares and cfg.MODEL.DGNET.EDGE_WEIGHTS == "none" and not is_routed(cfg):
        raise UserError("--closed, --skipped: the plain network has no edges and no branches")
    if args.closed and is_routed(cfg):
        raise UserError("--closed: routed stages have no edges to close; give --skipped")
    if args.skipped and cfg.MODEL.DGNET.WIRING == "residual" and not is_routed(cfg):
        raise UserError("--skipped: in the residual wiring no node is skipped; give no share")
    if not args.baseline and not shares:
        raise UserError("--baseline, --closed, --skipped: give something to compare with")

    files = [args.config_file, *args.baseline]
    names = [Path(file).stem for file in files]
    if len(set(names)) < len(names):
        names = files
    name = names[0]
    contestants = [Contestant(name, cfg)]
    for baseline, file in zip(names[1:], args.baseline, strict=True):
        stock = file == "stock"
        other = stock_config(cfg) if stock else load_cfg(file, args.opts)
        contestants.append(Contestant(baseline, other, stock=stock))
    variants = [Contestant(f"{s:.0%} of edges closed", cfg, closed=s) for s in args.closed]
    variants += [Contestant(f"{s:.0%} of blocks skipped", cfg, skipped=s) for s in args.skipped]
    if len({c.name for c in (*contestants, *variants)}) < len(contestants) + len(variants):
        raise UserError("--baseline, --closed, --skipped: two of them are the same")
    height, width = args.input_size
    workload = Workload(args.mode, args.part, height, width, args.batch)
    results = measure([*contestants, *variants], workload, repeats=args.repeats)

    models: dict[str, dict[str, Any]] = {
        model: {"seconds": median_and_range(result.seconds), "peak_bytes": result.peak_bytes}
        for model, result in results.items()
    }
    comparisons = {
        **{f"{name} ÷ {c.name}": (name, c.name) for c in contestants[1:]},
        **{f"{v.name} ÷ full graph": (v.name, name) for v in variants},
    }
    ratios = {key: compare_runs(results[a], results[b]) for key, (a, b) in comparisons.items()}
    environment = describe_environment()
    for key, value in environment.items():
        print(f"{key}: {value}")
    rows = [
        [model, _range(figures["seconds"]), f"{figures['peak_bytes'] / 2**20:.0f}"]
        for model, figures in models.items()
    ]
    print(tabulate(rows, ["model", "seconds", "peak MiB"], disable_numparse=True), end="\n\n")
    rows = [[k, _range(r["ratio"]), f"{r['memory_ratio']:.2f}"] for k, r in ratios.items()]
    print(tabulate(rows, ["ratio", "time", "memory"], disable_numparse=True))
    if args.json:
        figures = {
            "environment": environment,
            "workload": workload._asdict(),
            "models": models,
            "ratios": ratios,
        }
        write_json(args.json, figures)


def _range(values: dict[str, float]) -> str:
    return f"{values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"
