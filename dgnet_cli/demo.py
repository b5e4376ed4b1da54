"""Detect in images and videos, and draw what was found.

Takes image files, video files, folders of both, quoted patterns, or images of a registered dataset.
Each becomes a picture (.png) or a video (.mp4) of its name in the output folder, with boxes, class
names and scores, beside it with --truth the annotations of a dataset, and with --wiring the graphs
with their edge weights for this image. A file that does not decode is named and left out. All
detections and edge weights go to a JSON file.

The detector is MODEL.WEIGHTS of a config, or a file of dgnet export. A GPU is used if there is one;
MODEL.DEVICE cpu forces the CPU.

Examples:
    %(prog)s --input photo.jpg holiday/ clip.mp4 --output output/seen \\
        --config-file output/config.yaml MODEL.WEIGHTS output/model_final.pth
    %(prog)s --dataset mine/val.json --num 4 --truth --wiring --output output/seen \\
        --config-file output/config.yaml MODEL.WEIGHTS output/model_final.pth
    %(prog)s --input 'shots/*.jpg' --output output/seen --exported detector.onnx
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgnet_cli import arguments


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the detector", required=False)
    parser.add_argument("--exported", metavar="FILE", help="detector of dgnet export")
    parser.add_images("images, videos, folders of them, or quoted patterns", num=8)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder for the pictures"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="default: detections.json among the pictures"
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="what a detection's score must be above (default: %(default)s)",
    )
    parser.add_argument(
        "--wiring", action="store_true", help="draw the graphs beside each image or frame"
    )
    parser.add_argument(
        "--truth", action="store_true", help="draw the dataset's annotations beside each image"
    )
    args = parser.parse_args(argv)
    if args.truth and not args.dataset:
        parser.error("--truth goes with --dataset")
    if bool(args.config_file) == bool(args.exported):
        parser.error("give either --config-file or --exported")
    if args.exported and (args.dataset or args.wiring or args.opts):
        parser.error("--dataset, --wiring and overrides need --config-file")

    from detectron2.data import MetadataCatalog

    from dgnet_det.config import get_cfg, is_routed, score_threshold, with_own_weights
    from dgnet_det.data import load_cfg_with_data
    from dgnet_det.errors import UserError
    from dgnet_det.export.demo import FIELDS, annotate_image, annotate_video
    from dgnet_det.export.exported import load_detector
    from dgnet_det.export.predictor import Detector, load_predictor
    from dgnet_det.modeling.folding import optimize_for_inference
    from dgnet_det.modeling.observation import check_decides
    from dgnet_det.utils.files import make_folder, write_json
    from dgnet_det.utils.pictures import picture_paths
    from dgnet_det.utils.videos import SUFFIX, VIDEO_SUFFIXES, is_video

    above = score_threshold(args.confidence, "--confidence")
    cfg = (
        load_cfg_with_data(
            args.config_file, [*with_own_weights(args.config_file, args.opts), *above]
        )
        if args.config_file
        else get_cfg()
    )
    images = arguments.chosen_images(cfg, args, also=VIDEO_SUFFIXES)
    files = [Path(image["file_name"]) for image in images]
    targets = picture_paths(args.output, files, dict.fromkeys(VIDEO_SUFFIXES, SUFFIX))
    make_folder(args.output)
    detector: Detector
    metadata = None
    if args.exported:
        detector = load_detector(args.exported)
    else:
        detector = predictor = load_predictor(cfg, args.dataset if args.truth else "")
        optimize_for_inference(predictor.model)
        names = args.dataset, *cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST
        metadata = MetadataCatalog.get(next(filter(None, names), ""))
        if args.wiring:
            check_decides(predictor.model)
    options = {"confidence": args.confidence, "graphs": args.wiring, "metadata": metadata}

    report: dict[str, Any] = {
        "config_file": args.config_file,
        "weights": args.exported or cfg.MODEL.WEIGHTS,
        "wiring": (
            None if not args.wiring else "branches" if is_routed(cfg) else cfg.MODEL.DGNET.WIRING
        ),
        "confidence": args.confidence,
        "fields": FIELDS,
        "class_names": detector.class_names,
        "images": [],
        "videos": [],
    }
    failed = 0
    for k, (file, target, image) in enumerate(zip(files, targets, images, strict=True), start=1):
        print(f"[{k}/{len(files)}] {file}", flush=True)
        truth = image.get("annotations", ()) if args.truth else None
        try:
            if is_video(file):
                report["videos"].append(annotate_video(detector, file, target, **options))
            else:
                report["images"].append(
                    annotate_image(detector, file, target, truth=truth, **options)
                )
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
    json_file = args.json or args.output / "detections.json"
    write_json(json_file, report)

    frames = [frame for video in report["videos"] for frame in video["frames"]]
    count = sum(len(seen["detections"]) for seen in [*report["images"], *frames])
    print(
        f"images: {len(report['images'])}, videos: {len(report['videos'])}, of {len(frames)}"
        f" frames; detections of score > {args.confidence:g}: {count}"
        + ("" if count else " (lower --confidence to see weaker ones)")
    )
    print(f"written to {args.output}, detections to {json_file}")
    if failed:
        raise UserError(f"{failed} of {len(files)} files could not be read or drawn: see above")
