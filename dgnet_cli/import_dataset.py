"""Convert a dataset of a labelling tool's to COCO JSON, one file for each split.

Reads Pascal VOC, LabelMe, "CVAT for images", YOLO (classes in data.yaml, classes.txt or obj.names),
COCO itself, as Label Studio, CVAT and Roboflow export it, and CSV with a row for each box:
filename, class, xmin, ymin, xmax, ymax (or x, y, w, h), in pixels or, as in Open Images, fractions.
Annotations and images may lie in any folders below the one that is named, or in a .zip, which is
unpacked into the output folder. What tells an image's split: ImageSets/Main/*.txt, YOLO's lists,
CVAT's subsets, or a folder (train/, valid/), CSV (train.csv) or COCO file (train.json) that is
called after it. Images stay where they are, and nothing is written unless all can be read. Boxes
that are marked difficult, or as groups, become COCO's crowds: training and evaluation leave them
out. Polygons, circles and turned boxes become the upright boxes around them; COCO's masks and
keypoints are kept. Where the annotations state a size, boxes follow images that were resized, or
turned by their EXIF tag, since. Annotations are numbered from 1, and images found by base name.

Examples:
    %(prog)s mine/VOC2012 mine/coco
    %(prog)s mine/photos mine/coco --val-share 0.2
    %(prog)s mine/frames mine/coco --val-share 0.2 --group-by '^(.+)_frame'
    %(prog)s mine/yolo/data.yaml mine/coco --json summary.json
    %(prog)s mine/export.zip mine/coco --val-share 0.2
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgnet_cli import arguments

FORMATS = ("voc", "labelme", "cvat", "csv", "yolo", "coco")


def print_summary(report: dict[str, Any]) -> None:
    """What was written, what may be wrong with it, and how to go on."""
    from tabulate import tabulate

    splits = report["splits"]
    keys = ("images", "images_without_boxes", "boxes", "difficult_boxes")
    rows = [[key.replace("_", " "), *(split[key] for split in splits.values())] for key in keys]
    for name in report["classes"]:
        rows.append([f"  {name}", *(split["classes"][name] for split in splits.values())])
    print(tabulate(rows, ["", *splits]))
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    for name, split in splits.items():
        print(f"{name}: {split['json']}, images in {split['image_folder']}")
    if "train" in splits:
        command = "dgnet check {json} {image_folder}".format(**splits["train"])
        if "val" in splits:
            command += " --val {json} {image_folder}".format(**splits["val"])
        else:
            print("There is no split to validate on: --val-share 0.2 makes one")
        print(f"Next: {command}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "dataset",
        type=Path,
        metavar="FOLDER",
        help="the dataset, or its .zip, data.yaml, XML, JSON or CSV",
    )
    parser.add_argument(
        "output", type=Path, help="folder for train.json and so on, which are replaced if there"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: what the folder looks like")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=(),
        metavar="NAME",
        help="the classes in order, 1 to K in the JSON (default: the data's own, else by name)",
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="where images are elsewhere")
    parser.add_argument(
        "--origin",
        type=int,
        choices=(0, 1),
        help="1: coordinates are numbers of pixels from 1, as Pascal VOC says; 0: edges from 0"
        " (default: 0, but 1 for voc without a coordinate of 0)",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="SHARE",
        help="for data without splits: take so many images, such as 0.2, at random for validation",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of --val-share: the same seed, the same images"
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="of --val-share: images whose paths agree in what the regular expression's (groups)"
        " match stay together, as frames of one video and tiles of one photograph must:"
        " '^(.+)_frame', or '^(.+)/' for folders",
    )
    parser.add_argument("--json", metavar="FILE", help="write the summary here as well")
    args = parser.parse_args(argv)
    if args.group_by is not None and args.val_share is None:
        parser.error("--group-by goes with --val-share")

    from dgnet_det.data.findings import Findings
    from dgnet_det.data.importing import read_dataset, unpacked
    from dgnet_det.data.writing import split_off, write_coco
    from dgnet_det.utils.files import write_json

    findings = Findings(args.dataset)
    with unpacked(args.dataset, args.output) as dataset:
        categories, splits = read_dataset(
            dataset,
            findings,
            layout=args.format,
            images=args.images,
            classes=args.classes,
            origin=args.origin,
            output=args.output,
        )
        if args.val_share is not None:
            splits = split_off(splits, args.val_share, args.seed, args.group_by)
    report = write_coco(categories, splits, args.output, f"imported from {args.dataset.name}")
    report["warnings"] = [finding.line() for finding in findings.of("warning")]
    print_summary(report)
    if args.json:
        write_json(args.json, report)
