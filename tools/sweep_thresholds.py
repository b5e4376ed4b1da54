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
    tools/sweep_thresholds.py --output sweep.png --name "no sparsity loss" \\
        --compare "sparsity loss" output/sparse/config.yaml output/sparse/model_final.pth \\
        --config-file output/dense/config.yaml MODEL.WEIGHTS output/dense/model_final.pth
"""

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode
from tabulate import tabulate

from dgnet_det.analysis.benchmark import environment
from dgnet_det.analysis.sweep import COLORS, SHARES, Point, draw_sweeps, sweep, thresholds_for
from dgnet_det.config import load_cfg
from dgnet_det.data import check_datasets
from dgnet_det.errors import UserError, run_tool
from dgnet_det.export.predictor import load_predictor
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import dynamic_graphs
from dgnet_det.utils.files import write_json
from dgnet_det.utils.pictures import save_figure


def checked(cfg: CfgNode) -> CfgNode:
    """``cfg``, if there is something to sweep and to evaluate on."""
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS: empty: name the checkpoint of a trained detector")
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"DATASETS.TEST {list(cfg.DATASETS.TEST)}: name one dataset to evaluate on")
    check_datasets(cfg, cfg.DATASETS.TEST)
    return cfg


def swept(name: str, cfg: CfgNode, thresholds: list[float] | None, repeats: int) -> list[Point]:
    """The points of one detector, printed as a table too."""
    predictor = load_predictor(cfg, whole=True)
    if not dynamic_graphs(predictor.model):
        raise UserError(f"{name}: the plain network has no edges to close")
    model = optimize_for_inference(predictor.model)
    cfg = predictor.cfg
    points = sweep(model, cfg, thresholds or thresholds_for(SHARES, model, cfg), repeats=repeats)
    rows = [
        {
            "τ ≥": f"{p.threshold:.5f}",
            "AP": f"{p.ap:.2f}",
            "AP50": f"{p.ap50:.2f}",
            "open edges": f"{p.open_edges:.1%}",
            "absent nodes": f"{p.absent_nodes:.1%}",
            "multiply-adds, M": f"{p.macs / 1e6:.2f}",
            "backbone, ms": f"{p.backbone_seconds * 1e3:.2f}",
            "detector, ms": f"{p.detector_seconds * 1e3:.2f}",
        }
        for p in points
    ]
    print(f"\n{name}\n{tabulate(rows, headers='keys', tablefmt='pipe', disable_numparse=True)}\n")
    return points


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML of the detector")
    parser.add_argument("--output", required=True, metavar="FILE", help="picture to write, *.png")
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
        help="how often each image is timed; its fastest run counts (default: %(default)s)",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: give at least 1")
    detectors = {args.name: checked(load_cfg(args.config_file, args.opts))}
    for name, config, weights in args.compare:
        detectors[name] = checked(load_cfg(config, [*args.opts, "MODEL.WEIGHTS", weights]))
    if len(detectors) <= len(args.compare) or len(detectors) > len(COLORS):
        raise UserError(f"--compare: give up to {len(COLORS) - 1} detectors, each its own name")

    results = {
        name: swept(name, cfg, args.thresholds, args.repeats) for name, cfg in detectors.items()
    }
    cfg = detectors[args.name]
    save_figure(draw_sweeps(results, cfg.DATASETS.TEST[0]), args.output)
    print(f"drawn to {args.output}")
    if args.json:
        write_json(
            args.json,
            {
                "environment": environment(cfg.MODEL.DEVICE),
                "dataset": cfg.DATASETS.TEST[0],
                "repeats": args.repeats,
                "detectors": {
                    name: {
                        "weights": detectors[name].MODEL.WEIGHTS,
                        "wiring": detectors[name].MODEL.DGNET.WIRING,
                        "points": [point._asdict() for point in points],
                    }
                    for name, points in results.items()
                },
            },
        )


if __name__ == "__main__":
    run_tool(main)
