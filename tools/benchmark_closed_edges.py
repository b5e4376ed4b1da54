#!/usr/bin/env python
"""What closed edges and skipped nodes save: latency of a backbone against their share.

Example:
    tools/benchmark_closed_edges.py --output docs/images/closed-edges.png --json closed-edges.json \
        --config-file configs/COCO-Detection/faster_rcnn_DG_R_101_FPN_1x.yaml

The untrained network runs with drawn edge weights: α = 0.5 or closed, drawn per image, so that the
images of a batch close different edges. All variants take turns as in tools/benchmark.py, and each
is compared, pair by pair, with the full graph of the same batch.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from tabulate import tabulate
from tqdm import tqdm

from dgnet_det.analysis.benchmark import Contestant, Workload, compare, environment, measure
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError, run_tool
from dgnet_det.utils.files import write_json
from dgnet_det.utils.pictures import save_figure


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="PNG")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--closed", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0], metavar="SHARE"
    )
    parser.add_argument(
        "--skipped",
        type=float,
        nargs="*",
        default=[1 / 3, 2 / 3],
        metavar="SHARE",
        help="shares of blocks all of whose inputs are closed (paper wiring)",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--input-size", type=int, nargs=2, default=[800, 1333], metavar=("H", "W"), help="pixels"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args(argv)
    for share in [*args.closed, *args.skipped]:
        if not 0 <= share <= 1:
            raise UserError(f"{share}: a share is between 0 and 1")
    cfg = load_cfg(args.config_file, [*args.opts, "MODEL.WEIGHTS", ""])
    if cfg.MODEL.DGNET.WIRING == "residual" and args.skipped:
        raise UserError("--skipped: in the residual wiring no node is skipped; give no share")

    variants = [Contestant("full graph", cfg)]
    variants += [Contestant(f"{s:.0%} of edges closed", cfg, closed=s) for s in args.closed]
    variants += [Contestant(f"{s:.0%} of blocks skipped", cfg, skipped=s) for s in args.skipped]
    height, width = args.input_size
    rows: list[list] = []
    figures: dict[str, dict] = {"environment": environment(cfg.MODEL.DEVICE), "batches": {}}
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for color, batch in enumerate(args.batch):
        workload = Workload("inference", "backbone", height, width, batch)
        with tqdm(total=args.repeats, desc=f"batch {batch}") as bar:
            results = measure(
                variants, workload, repeats=args.repeats, progress=lambda done: bar.update()
            )
        full = results["full graph"]
        ratios = {name: compare(result, full)["ratio"] for name, result in results.items()}
        figures["batches"][batch] = ratios
        for name, ratio in ratios.items():
            rows.append([batch, name, *(f"{ratio[key]:.3f}" for key in ("median", "min", "max"))])
        for kind, what, style in (
            ("closed", "edges closed", "o-"),
            ("skipped", "blocks skipped", "s--"),
        ):
            shown = [v for v in variants if v.name == "full graph" or getattr(v, kind)]
            if len(shown) > 1:
                axes.plot(
                    [getattr(v, kind) for v in shown],
                    [ratios[v.name]["median"] for v in shown],
                    style,
                    color=f"C{color}",
                    label=f"{what}, batch {batch}",
                )
    axes.set(xlabel="share", ylabel="latency ÷ that of the full graph", ylim=(0, None))
    axes.set_title(f"{Path(args.config_file).stem}, backbone")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, args.output)
    print(tabulate(rows, ["batch", "variant", "latency / full graph", "min", "max"]))
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    run_tool(main)
