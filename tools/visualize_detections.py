#!/usr/bin/env python
"""Draw a detector's detections beside the ground truth.

Takes images spread evenly over a dataset and writes one picture for each, under the image's name.
Weights are those of MODEL.WEIGHTS.

Example:
    python tools/visualize_detections.py --num 4 --output output/detections \\
        --config-file configs/COCO-Detection/faster_rcnn_DG_R_50_FPN_1x.yaml \\
        MODEL.WEIGHTS output/model_final.pth
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog

from dgnet_det.config import load_cfg, score_threshold
from dgnet_det.data import check_datasets, read_image, spread_images
from dgnet_det.errors import UserError, run_tool
from dgnet_det.export.predictor import detector_of, load_predictor
from dgnet_det.utils.pictures import draw_beside_truth, picture_paths, save_figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML of the detector")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder for the pictures"
    )
    parser.add_argument(
        "--num", type=int, default=8, help="number of images (default: %(default)s)"
    )
    parser.add_argument("--dataset", help="default: the first of DATASETS.TEST")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="what a detection's score must be above (default: %(default)s)",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    args = parser.parse_args(argv)

    opts = [*args.opts, *score_threshold(args.threshold, "--threshold")]
    cfg = load_cfg(args.config_file, opts)
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), None)
    if dataset is None:
        raise UserError("DATASETS.TEST: empty: name a dataset there or with --dataset")
    check_datasets(cfg, [dataset])
    images = spread_images(dataset, args.num)
    targets = picture_paths(args.output, [image["file_name"] for image in images])
    detector = detector_of(load_predictor(cfg))
    for k, (image, target) in enumerate(zip(images, targets, strict=True), start=1):
        file = Path(image["file_name"])
        pixels = read_image(file, "RGB")
        figure = draw_beside_truth(
            pixels,
            detector(pixels, "RGB"),
            image.get("annotations", ()),
            MetadataCatalog.get(dataset).thing_classes,
            threshold=args.threshold,
        )
        save_figure(figure, target)
        print(f"[{k}/{len(images)}] {file}", flush=True)
    print(f"{len(images)} pictures written to {args.output}")


if __name__ == "__main__":
    run_tool(main)
