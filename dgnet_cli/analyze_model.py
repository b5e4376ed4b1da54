"""Count a model's parameters, multiply-adds and activations and print its graphs.

No dataset and no weights are needed, except for what closed edges save on real images: with
--input or --dataset, MODEL.WEIGHTS is loaded and each image's backbone multiply-adds are counted
as they run, closed edges and absent nodes left out.

Examples:
    C=configs/COCO-Detection/faster_rcnn_DG_R_50_FPN_1x.yaml
    %(prog)s --config-file $C --tasks parameter flop activation structure
    %(prog)s --config-file $C --tasks flop --input-size 224 224 MODEL.RESNETS.NORM BN
    %(prog)s --config-file $C --tasks flop --dataset coco_2017_val --json macs.json
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dgnet_cli import arguments

TASKS = ("parameter", "flop", "activation", "structure")
# What each figure means, for the reader of a report.
COUNTED = {
    "params": (
        "elements of nn.Parameters, with nothing frozen (MODEL.BACKBONE.FREEZE_AT taken as 0). The"
        " scale and shift of BN, SyncBN and GN are parameters; those of FrozenBN are buffers"
    ),
    "conv_macs": "multiply-adds of the convolutions alone, as in the paper's Table 1",
    "macs": (
        "multiply-adds of convolutions, linear layers and matrix products (the routers' pooling"
        " too), and of the gathered sums one per element and weighted edge, the fixed chain of the"
        " residual wiring not among them. Norms, activation functions, unweighted additions, other"
        " pooling, RoIAlign and NMS count as none"
    ),
    "activations": "elements of the outputs of convolutions, linear layers and matrix products",
    "backbone": (
        "stem and stages without FPN, one image of exactly the input size, all edges open, of"
        " routed stages the dearest branches"
    ),
    "model": (
        "the whole model, one image of random pixels padded to the backbone's size divisibility,"
        " all edges open, of routed stages what untrained routers choose, random weights. The share"
        " of the ROI heads depends on the number of proposals"
    ),
    "paths": (
        "the backbone of routed stages, every connection with its cheapest or dearest branch, and"
        " the mean over the branches"
    ),
    "dynamic": (
        "the backbone on each image as resized for testing and padded: what ran, without edges of"
        " weight 0 and absent nodes, beside all_open_macs. mean and std are over the images (std"
        " with n in the denominator)"
    ),
}

FIELDS_OF_TASKS = {
    "parameter": ("params",), "flop": ("conv_macs", "macs"), "activation": ("activations",)
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, count, print and write."""
    parser = arguments.ConfigParser(__doc__, config_help="a YAML of configs/")
    parser.add_argument("--tasks", required=True, nargs="+", choices=TASKS, help="what to report")
    parser.add_argument(
        "--input-size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="image size of the counts that need no images (default: 800 1333; a classifier's own"
        " for a classifier)",
    )
    parser.add_images("image files or folders to run the backbone on", required=False)
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    args = parser.parse_args(argv)

    from fvcore.nn import parameter_count_table

    from dgnet_det.analysis.counts import (
        build_for_analysis,
        path_counts,
        structure,
    )
    from dgnet_det.config import is_classifier, is_routed, with_own_weights
    from dgnet_det.data import load_cfg_with_data
    from dgnet_det.errors import UserError
    from dgnet_det.export.predictor import load_predictor
    from dgnet_det.modeling.observation import dgnet_of
    from dgnet_det.utils.files import write_json

    if min(args.input_size or (1,)) < 1:
        raise UserError("--input-size: give numbers of at least 1")
    cfg = load_cfg_with_data(args.config_file, with_own_weights(args.config_file, args.opts))
    if args.input or args.dataset:
        if is_classifier(cfg):
            raise UserError("--input, --dataset: these take the config of a detector")
        if cfg.MODEL.DGNET.EDGE_WEIGHTS == "none" and not is_routed(cfg):
            raise UserError("MODEL.DGNET.EDGE_WEIGHTS none: no edge can close in images")
    images = arguments.chosen_images(cfg, args)
    model = build_for_analysis(cfg)
    own_size = [cfg.CLASSIFICATION.SIZE] * 2 if is_classifier(cfg) else [800, 1333]
    height, width = args.input_size or own_size
    report: dict[str, Any] = {
        "config_file": args.config_file,
        "overrides": args.opts,
        "family": cfg.MODEL.DGNET.FAMILY,
        "wiring": cfg.MODEL.DGNET.WIRING,
        "edge_weights": cfg.MODEL.DGNET.EDGE_WEIGHTS,
        "branches": cfg.MODEL.DRNET.BRANCHES if is_routed(cfg) else None,
        "norm": cfg.MODEL.RESNETS.NORM,
        "input_size": [height, width],
        "counted": dict(COUNTED),
        **count_parts(model, (height, width), args.tasks),
    }
    if paths := path_counts(dgnet_of(model), (height, width)):
        report["paths"] = {name: path._asdict() for name, path in paths.items()}
    if "structure" in args.tasks:
        report["structure"] = structure(dgnet_of(model), (height, width))
    if images:
        if not cfg.MODEL.WEIGHTS:
            print("MODEL.WEIGHTS is empty: the routers are untrained", file=sys.stderr)
        predictor = load_predictor(cfg, allow_untrained=True)
        report["dynamic"] = count_images(predictor.model, cfg, images)
    for key in ("paths", "dynamic"):
        if key not in report:
            del report["counted"][key]

    if "parameter" in args.tasks:
        print(parameter_count_table(model), end="\n\n")
    print_report(report)
    if args.json:
        write_json(args.json, report)
        print(f"written to {args.json}")


def count_parts(
    model: Any, size: tuple[int, int], tasks: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What ``tasks`` ask for, out of ``parameter``, ``flop`` and ``activation``, as JSON takes it:
    of the ``backbone``, and of the ``model`` as a whole and in parts."""
    from dgnet_det.analysis.counts import backbone_counts, model_counts
    from dgnet_det.modeling.observation import dgnet_of

    fields = [f for task, of_task in FIELDS_OF_TASKS.items() if task in tasks for f in of_task]
    if not fields:
        return {"backbone": {}, "model": {"parts": {}}}
    if fields == ["params"]:
        size = (64, 64)  # they are the same at any size

    def chosen(counts: Any) -> dict[str, int]:
        return {field: getattr(counts, field) for field in fields}

    parts = {name: chosen(counts) for name, counts in model_counts(model, size).items()}
    return {
        "backbone": chosen(backbone_counts(dgnet_of(model), size)),
        "model": {**parts.pop("total"), "parts": parts},
    }


def count_images(model: Any, cfg: Any, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the backbone of a detector runs on images that have a ``file_name``, as JSON takes
    it."""
    from tqdm import tqdm

    from dgnet_det.analysis.counts import ImageCounter
    from dgnet_det.data import CheckedDatasetMapper

    count, mapper = ImageCounter(model), CheckedDatasetMapper(cfg, is_train=False)
    rows: list[dict[str, Any]] = []
    for image in tqdm(images, desc="images", unit="image"):
        size, ran, all_open = count(mapper(image)["image"])
        rows.append(
            {
                "file": str(image["file_name"]),
                "padded_size": list(size),
                "macs": ran.macs,
                "conv_macs": ran.conv_macs,
                "all_open_macs": all_open.macs,
            }
        )
    report: dict[str, Any] = {"num_images": len(rows), "weights": cfg.MODEL.WEIGHTS}
    for key in ("macs", "conv_macs", "all_open_macs"):
        values = [row[key] for row in rows]
        report[key] = {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}
    return {**report, "images": rows}


def print_report(report: dict[str, Any]) -> None:
    """The report as tables, counts in millions."""
    from tabulate import tabulate

    def show(rows: Sequence[Any], headers: Any) -> None:
        table = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, stralign="right")
        print(f"{table}\n")

    def millions(counts: dict[str, Any]) -> list[str]:
        return [f"{value / 1e6:.3f}" for value in counts.values() if isinstance(value, int)]

    height, width = report["input_size"]
    network = f"wiring {report['wiring']}, edge weights {report['edge_weights']}"
    if report["branches"]:
        network = f"branches {', '.join(report['branches'])}"
    print(f"{report['config_file']}: family {report['family']}, {network}, norm {report['norm']}\n")
    if report["backbone"]:
        backbone, model = report["backbone"], dict(report["model"])
        parts = model.pop("parts")
        rows = [[f"backbone, {height} × {width}", *millions(backbone)]]
        rows += [[f"model: {name}", *millions(counts)] for name, counts in parts.items()]
        rows.append(["model", *millions(model)])
        show(rows, ["in millions", *backbone])
    if "paths" in report:
        rows = [[f"{name} path", *millions(path)] for name, path in report["paths"].items()]
        show(rows, ["in millions", *report["paths"]["mean"]])
    if "structure" in report:
        show(report["structure"], "keys")
    if "dynamic" in report:
        rows = [
            [key, f"{value['mean'] / 1e6:.3f} ± {value['std'] / 1e6:.3f}"]
            for key, value in report["dynamic"].items()
            if isinstance(value, dict)
        ]
        images = f"backbone, {report['dynamic']['num_images']} images"
        show(rows, [images, "millions, mean ± std"])
    for term, meaning in report["counted"].items():
        print(f"{term}: {meaning}.")
