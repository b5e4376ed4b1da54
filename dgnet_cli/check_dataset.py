"""Say what is wrong with a dataset in COCO's JSON format, before hours of training do.

Reads the annotations and decodes every image. Prints errors (training or evaluation would fail, or
learn or tell something wrong), warnings (they may be meant) and statistics, and compares the boxes
with the anchors of a config, and masks and keypoints with what its model wants. Ends with the
command that trains on the data, or, if there is an error, with exit code 1. dgnet train runs the
part that opens no images by itself.

Examples:
    %(prog)s mine/train.json mine/images
    %(prog)s mine/train.json mine/images --val mine/val.json mine/images
    %(prog)s mine/train.json mine/images --json report.json \\
        --config-file configs/COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgnet_cli import arguments

CONFIG = "COCO-Detection/Base-RCNN-DG-FPN.yaml"
TO_TRAIN = "COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml"  # where none is given
MOST_CLASSES = 30  # in a printed table; the JSON has all
MOST_CASES = 3  # of a kind, beside the first


def print_findings(report: dict[str, Any]) -> None:
    """Errors, then warnings, a line each."""
    for severity in ("errors", "warnings"):
        found = report[severity]
        name = severity if len(found) != 1 else severity[:-1]
        print(f"{len(found) or 'no'} {name}{':' if found else ''}")
        for finding in found:
            print(f"  {finding['line']}")
            if len(finding["cases"]) > 1:
                more = " …" if finding["count"] > 1 + MOST_CASES else ""
                print(f"      also {', '.join(finding['cases'][1 : 1 + MOST_CASES])}{more}")
        print()


def cell(value: Any) -> str:
    """A figure of the statistics as text."""
    if isinstance(value, dict):
        return " / ".join(map(cell, value.values()))
    if isinstance(value, (list, tuple)):
        return " × ".join(map(cell, value))
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def print_statistics(datasets: Sequence[dict[str, Any]]) -> None:
    """The datasets side by side, then their classes."""
    from tabulate import tabulate

    names = [Path(data["json"]).stem for data in datasets]
    rows = []
    for key, value in datasets[0].items():
        if key != "classes":
            parts = f" ({' / '.join(value)})" if isinstance(value, dict) else ""
            rows.append([(key + parts).replace("_", " "), *(cell(data[key]) for data in datasets)])
    print(tabulate(rows, ["", *names], tablefmt="plain", disable_numparse=True))
    print()
    classes: dict[str, list[str]] = {}
    for position, data in enumerate(datasets):
        for entry in data["classes"]:
            row = classes.setdefault(entry["name"], ["-"] * len(datasets))
            share = f"{entry['boxes'] / max(1, data['boxes']):.1%}"
            row[position] = f"{entry['boxes']} ({share}) in {entry['images']} images"
    shown = [[name, *row] for name, row in classes.items()][:MOST_CLASSES]
    print(tabulate(shown, ["class", *names], disable_numparse=True))
    if len(classes) > MOST_CLASSES:
        print(f"… and {len(classes) - MOST_CLASSES} more classes: --json has all")
    print()


def print_anchors(anchors: dict[str, Any], config_file: str) -> None:
    """The boxes against the config's anchors, and better ones."""
    from tabulate import tabulate

    side = anchors["shorter_side"]
    scaled = f"images resized to a shorter side of {side}" if side else "images not resized"
    sizes = " / ".join(f"{v:.0f}" for v in anchors["box_sizes"].values())
    print(f"Anchors of {config_file}, {scaled}: boxes then have sides of {sizes} pixels.")
    rows = []
    for name in ("config", "suggested"):
        if fit := anchors[name]:
            sizes = " ".join(",".join(f"{size:g}" for size in level) for level in fit["sizes"])
            ratios = ", ".join(f"{ratio:g}" for ratio in fit["ratios"])
            rows.append([name, sizes, ratios, f"{fit['meet']:.1%}", f"{fit['overlap']:.3f}"])
    headers = ["", "sizes by feature map", "height / width", "boxes met", "mean IoU of the best"]
    print(tabulate(rows, headers, disable_numparse=True))
    if anchors["suggested"]:
        print(f"To use the suggested ones:\n  {anchors['suggested']['override']}")


def training_command(args: argparse.Namespace) -> str:
    """The command that trains on the data with the config and keys that they were checked with."""
    config = TO_TRAIN if args.config_file == CONFIG else args.config_file
    words = ["dgnet", "train", "--config-file", config, *args.opts]
    for split, files in (("TRAIN", (args.dataset, args.images)), ("VAL", args.val or ())):
        for key, file in zip(("JSON", "IMAGES"), files, strict=False):
            words += [f"DATASETS.{split}_{key}", file]
    return shlex.join(words)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.ConfigParser(
        __doc__,
        config_help="whose model, anchors and image size the annotations are compared with"
        f" (default: {CONFIG})",
        default_config=CONFIG,
    )
    parser.add_argument("dataset", metavar="JSON", help="annotations in COCO's format")
    parser.add_argument("images", metavar="IMAGE_FOLDER", help="where its file names start from")
    parser.add_argument(
        "--val",
        nargs=2,
        metavar=("JSON", "IMAGE_FOLDER"),
        help="the validation set: checked too, and compared with the first",
    )
    parser.add_argument("--json", metavar="FILE", help="write the report here as well")
    args = parser.parse_args(argv)

    from dgnet_det.config import load_cfg
    from dgnet_det.data.checks import inspect
    from dgnet_det.errors import UserError
    from dgnet_det.utils.files import write_json

    # Training takes the format of masks that the data need, unless it is told.
    cfg = load_cfg(args.config_file, ["INPUT.MASK_FORMAT", "bitmask", *args.opts])
    report = inspect(cfg, (args.dataset, args.images), args.val)
    print_findings(report)
    if report["datasets"]:
        print_statistics(report["datasets"])
    if report["anchors"]:
        print_anchors(report["anchors"], args.config_file)
    elif report["datasets"]:
        print("The boxes are compared with anchors when they are there and right.")
    if args.json:
        write_json(args.json, report)
        print(f"written to {args.json}")
    if errors := report["errors"]:
        more = f"; {len(errors) - 1} more kinds of errors above" if len(errors) > 1 else ""
        raise UserError(errors[0]["line"] + more)
    if not args.val:
        words = ["dgnet", "import", args.dataset, "NEW_FOLDER", "--images", args.images]
        print(f"To validate as well, split it first: {shlex.join([*words, '--val-share', '0.2'])}")
    print(f"Next: {training_command(args)}")
