#!/usr/bin/env python
"""Convert a dataset in Pascal VOC's or YOLO's format to COCO JSON, one file for each split.

Images stay where they are. Nothing is written unless all of it can be read. Layouts:
  Pascal VOC  Annotations/*.xml and JPEGImages/ (or images/), split by ImageSets/Main/*.txt;
              or XML files beside the images; or that in a folder for each split
  YOLO        data.yaml; or images/ and labels/, with or without a folder for each split, and
              classes.txt or --classes; or label files beside the images
Boxes that are marked difficult become COCO's crowds: training and evaluation leave them out.
Polygons become the boxes around them. Needs the package globox (pip install globox).

Examples:
    tools/import_dataset.py mine/VOC2012 mine/coco
    tools/import_dataset.py mine/photos mine/coco --val-share 0.2
    tools/import_dataset.py mine/yolo/data.yaml mine/coco --json summary.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dgnet_det.data.findings import Findings
from dgnet_det.data.importing import FORMATS, read_raw, split_off, summary, write_coco
from dgnet_det.errors import run_tool
from dgnet_det.utils.files import write_json


def print_summary(report: dict[str, Any]) -> None:
    """What was written, what may be wrong with it, and how to go on."""
    splits = report["splits"]
    rows = [
        [label, *(split[key] for split in splits.values())]
        for key, label in (
            ("images", "images"),
            ("images_without_boxes", "  of which without boxes"),
            ("boxes", "boxes"),
            ("difficult_boxes", "  of which difficult (not used)"),
        )
    ]
    rows += [
        [f"  {name}", *(split["classes"][name] for split in splits.values())]
        for name in report["classes"]
    ]
    print(tabulate(rows, ["", *splits]))
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    for name, split in splits.items():
        print(f"{name}: {split['json']}, images in {split['image_folder']}")
    if "train" in splits:
        command = "tools/check_dataset.py {json} {image_folder}".format(**splits["train"])
        if "val" in splits:
            command += " --val {json} {image_folder}".format(**splits["val"])
        else:
            print("There is no split to validate on: --val-share 0.2 makes one")
        print(f"Next: {command}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, metavar="FOLDER", help="the dataset, or a data.yaml")
    parser.add_argument(
        "output", type=Path, help="folder for train.json and so on, which are replaced if there"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: what the folder looks like")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=(),
        metavar="NAME",
        help="the classes in order, 1 to K in the JSON (default: data.yaml's, classes.txt's, or for"
        " Pascal VOC all that are there, by name)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="Pascal VOC: images that are elsewhere"
    )
    parser.add_argument(
        "--origin",
        type=int,
        choices=(0, 1),
        help="Pascal VOC: 1: coordinates are numbers of pixels from 1, as Pascal VOC says; 0: edges"
        " from 0, as some tools write (default: 0 if a coordinate is 0, else 1)",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="SHARE",
        help="for data without splits: take so many images, such as 0.2, at random for validation."
        " Frames of one video or tiles of one photograph need splits by hand",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of --val-share: the same seed, the same images"
    )
    parser.add_argument("--json", metavar="FILE", help="write the summary here as well")
    args = parser.parse_args(argv)

    findings = Findings()
    dataset = read_raw(
        args.dataset,
        findings,
        layout=args.format,
        images=args.images,
        classes=args.classes,
        origin=args.origin,
    )
    if args.val_share is not None:
        dataset = split_off(dataset, args.val_share, args.seed)
    files = write_coco(dataset, args.output, f"imported from {args.dataset.name}")
    report = summary(dataset, files)
    report["warnings"] = [finding.line() for finding in findings.of("warning")]
    print_summary(report)
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    run_tool(main)
