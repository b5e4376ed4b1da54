#!/usr/bin/env python
"""Draw a detector's detections beside the ground truth.

Takes images spread evenly over a dataset and writes one picture for each, under the image's name.
Weights are those of MODEL.WEIGHTS.

Example:
    tools/visualize_detections.py --num 4 --output output/detections \\
        --config-file configs/COCO-Detection/faster_rcnn_DG_R_50_FPN_1x.yaml \\
        MODEL.WEIGHTS output/model_final.pth
"""

from collections.abc import Sequence
from pathlib import Path

import arguments


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the detector")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder for the pictures"
    )
    parser.add_argument(
        "--num", type=int, default=8, metavar="N", help="images (default: %(default)s)"
    )
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="what a detection's score must be above (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    from detectron2.data import MetadataCatalog

    from dgnet_det.config import score_threshold
    from dgnet_det.data import check_datasets, load_cfg_with_data, read_image, spread_images
    from dgnet_det.errors import UserError
    from dgnet_det.export.demo import draw_detections, draw_truth, skeleton_of
    from dgnet_det.export.predictor import load_predictor
    from dgnet_det.modeling.folding import optimize_for_inference
    from dgnet_det.utils.files import make_folder
    from dgnet_det.utils.pictures import picture_paths, save_picture, side_by_side

    above = score_threshold(args.threshold, "--threshold")
    cfg = load_cfg_with_data(args.config_file, [*args.opts, *above])
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), None)
    if dataset is None:
        raise UserError("DATASETS.TEST: empty: name a dataset there or with --dataset")
    check_datasets(cfg, [dataset])
    images = spread_images(dataset, args.num)
    targets = picture_paths(args.output, [image["file_name"] for image in images])
    make_folder(args.output)
    detector = load_predictor(cfg, dataset)
    optimize_for_inference(detector.model)
    class_names, skeleton = MetadataCatalog.get(dataset).thing_classes, skeleton_of(dataset)
    for k, (image, target) in enumerate(zip(images, targets, strict=True), start=1):
        pixels, annotations = read_image(image["file_name"], "RGB"), image.get("annotations", ())
        found = detector(pixels, "RGB")
        pictures = [
            draw_detections(pixels, found, detector.class_names, skeleton=skeleton),
            draw_truth(pixels, annotations, class_names, skeleton=skeleton),
        ]
        titles = [
            f"detections of score > {args.threshold:g}: {len(found)}",
            f"ground truth: {len(annotations)}",
        ]
        save_picture(side_by_side(pictures, titles), target)
        print(f"[{k}/{len(images)}] {image['file_name']}", flush=True)
    print(f"{len(images)} pictures written to {args.output}")


if __name__ == "__main__":
    arguments.run(main)
