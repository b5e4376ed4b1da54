#!/usr/bin/env python
"""Close ever more edges of a trained detector: what it costs in AP and saves in compute and time.

Raises the thresholds τ of all nodes (Eq. 5) step by step, those that were learned higher excepted,
and at each step evaluates on DATASETS.TEST, one image at a time: box AP against the multiply-adds
that the backbone ran, closed edges and absent nodes left out, and against its latency. Norms are
folded and the layout is that of optimize_for_inference. By default the steps close 0, 2, 5, 10,
25, 50, 75, 90 and 100 % of the edge weights that are measured on the same images; a node that is
absent then closes further edges, and the output of a stage keeps its strongest.

Examples:
    tools/sweep_thresholds.py --output sweep.png --json sweep.json --config-file \\
        configs/Tree-Crowns/faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml \\
        MODEL.WEIGHTS output/demo/training/model_final.pth
    tools/sweep_thresholds.py --output sweep.png --name "no budget loss" \\
        --compare "budget loss" output/sparse/config.yaml output/sparse/model_final.pth \\
        --config-file output/dense/config.yaml MODEL.WEIGHTS output/dense/model_final.pth
"""

from collections.abc import Sequence
from pathlib import Path

import arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, sweep each detector, print, draw and write."""
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the detector")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="picture to write, *.png"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    parser.add_argument(
        "--name", default="detector", help="of the line in the plot (default: %(default)s)"
    )
    parser.add_argument(
        "--compare",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "CONFIG", "WEIGHTS"),
        help="another detector, for a line of its own; KEY VALUE overrides hold for it as well."
        " Can be repeated",
    )
    parser.add_argument(
        "--thresholds", nargs="+", type=float, metavar="T", help="the steps, instead of shares"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="how often each image is timed at each step (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    from tabulate import tabulate

    from dgnet_det.analysis.sweep import COLORS, SHARES, draw_sweeps, sweep, thresholds_for
    from dgnet_det.config import is_routed
    from dgnet_det.data import check_datasets, load_cfg_with_data
    from dgnet_det.errors import UserError
    from dgnet_det.export.predictor import load_predictor
    from dgnet_det.modeling.folding import optimize_for_inference
    from dgnet_det.modeling.observation import dynamic_graphs
    from dgnet_det.utils.environment import describe_environment
    from dgnet_det.utils.files import check_writable, write_json
    from dgnet_det.utils.pictures import save_figure

    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: give at least 1")
    check_writable(args.output)
    cfgs = {args.name: load_cfg_with_data(args.config_file, args.opts)}
    for name, config, weights in args.compare:
        cfgs[name] = load_cfg_with_data(config, [*args.opts, "MODEL.WEIGHTS", weights])
    if not len(args.compare) < len(cfgs) <= len(COLORS):
        raise UserError(f"--compare: give up to {len(COLORS) - 1} detectors, each its own name")
    for cfg in cfgs.values():
        if not cfg.MODEL.WEIGHTS:
            raise UserError("MODEL.WEIGHTS: empty: name the checkpoint of a trained detector")
        if len(cfg.DATASETS.TEST) != 1:
            names = list(cfg.DATASETS.TEST)
            raise UserError(f"DATASETS.TEST {names}: name one dataset to evaluate on")
        check_datasets(cfg, cfg.DATASETS.TEST)

    results = {}
    for name, cfg in cfgs.items():
        predictor = load_predictor(cfg, cfg.DATASETS.TEST[0])
        if not dynamic_graphs(predictor.model):
            kind = "a DRNet-style" if is_routed(cfg) else "the plain"
            raise UserError(f"{name}: {kind} network has no edges to close")
        model, cfg = optimize_for_inference(predictor.model), predictor.cfg
        thresholds = sorted(args.thresholds or thresholds_for(SHARES, model, cfg))
        points = results[name] = sweep(model, cfg, thresholds, repeats=args.repeats)
        rows = [
            {
                "τ ≥": f"{p.threshold:.5g}",
                "AP": f"{p.ap:.2f}",
                "AP50": f"{p.ap50:.2f}",
                "open edges": f"{p.open_edges:.1%}",
                "absent nodes": f"{p.absent_nodes:.1%}",
                "multiply-adds, M": f"{p.macs / 1e6:.2f}",
                "backbone, ms": f"{p.backbone['median'] * 1e3:.2f}",
                "detector, ms": f"{p.detector['median'] * 1e3:.2f}",
            }
            for p in points
        ]
        table = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
        print(f"\n{name}\n{table}\n")
    dataset = cfgs[args.name].DATASETS.TEST[0]
    save_figure(draw_sweeps(results, dataset), args.output)
    print(f"drawn to {args.output}")
    if args.json:
        figures = {
            "environment": describe_environment(),
            "dataset": dataset,
            "repeats": args.repeats,
            "detectors": {
                name: {
                    "weights": cfgs[name].MODEL.WEIGHTS,
                    "wiring": cfgs[name].MODEL.DGNET.WIRING,
                    "points": [point._asdict() for point in points],
                }
                for name, points in results.items()
            },
        }
        write_json(args.json, figures)


if __name__ == "__main__":
    arguments.run(main)
