#!/usr/bin/env python
"""Detect in images and videos, and draw what was found.

Takes image files, video files, folders of both, and quoted patterns. Each becomes a picture (.png)
or a video (.mp4) of its name in the output folder, with boxes, class names and scores. All
detections go to detections.json in the same folder. Nothing is written unless all succeed.

Weights are those of MODEL.WEIGHTS. A GPU is used if there is one; MODEL.DEVICE cpu forces the CPU.

Examples:
    tools/demo.py --input photo.jpg holiday/ clip.mp4 --output output/seen \\
        --config-file output/config.yaml MODEL.WEIGHTS output/model_final.pth
    tools/demo.py --input 'shots/*.jpg' --output output/seen --wiring --confidence 0.7 \\
        --config-file output/config.yaml MODEL.WEIGHTS output/model_final.pth
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dgnet_det.config import load_cfg, mark_overrides, score_threshold
from dgnet_det.data import find_images, read_image
from dgnet_det.errors import UserError, run_tool
from dgnet_det.export.demo import FIELDS, Annotated, annotator, to_records
from dgnet_det.export.predictor import load_predictor
from dgnet_det.utils.files import files_written_whole, write_json
from dgnet_det.utils.pictures import picture_paths
from dgnet_det.utils.videos import SUFFIX, VIDEO_SUFFIXES, Video, is_video, written_video

RECORDS = "detections.json"
Annotate = Callable[[np.ndarray], Annotated]


def annotate_image(annotate: Annotate, file: Path, target: Path) -> dict[str, Any]:
    """Write the picture of an image file and return its record."""
    image = read_image(file, "BGR")
    picture, detections = annotate(image)
    Image.fromarray(picture).save(target)
    return {
        "file": str(file),
        "picture": target.name,
        "width": image.shape[1],
        "height": image.shape[0],
        "detections": to_records(detections),
    }


def annotate_video(annotate: Annotate, file: Path, target: Path) -> dict[str, Any]:
    """Write the annotated video of a video file and return its record."""
    video = Video(file)
    frames: list[dict[str, Any]] = []
    with written_video(target, video.rate) as append:
        progress = tqdm(
            video, total=video.num_frames or None, desc=file.name, unit="frame", leave=False
        )
        for frame in progress:
            picture, detections = annotate(frame)
            append(picture[:, :, ::-1])
            frames.append({"frame": len(frames), "detections": to_records(detections)})
    if len(frames) < video.num_frames:
        print(
            f"{file}: {len(frames)} of the {video.num_frames} frames that its header states could"
            " be read",
            file=sys.stderr,
        )
    return {
        "file": str(file),
        "picture": target.name,
        "width": frame.shape[1],
        "height": frame.shape[0],
        "frames_per_second": video.rate,
        "frames": frames,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML of the detector")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, videos, folders of them, or quoted patterns",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder for what is written"
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="what a detection's score must be above (default: %(default)s)",
    )
    parser.add_argument(
        "--wiring", action="store_true", help="draw the wiring beside each image or frame"
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of the config, last"
    )
    args = parser.parse_args(mark_overrides(argv))

    opts = [*args.opts, *score_threshold(args.confidence, "--confidence")]
    cfg = load_cfg(args.config_file, opts)
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS: empty: name the checkpoint of a trained detector")
    files = find_images(args.input, also=VIDEO_SUFFIXES)
    targets = picture_paths(args.output, files, dict.fromkeys(VIDEO_SUFFIXES, SUFFIX))
    for file in files:  # before hours of work, not amid them
        Video(file) if is_video(file) else read_image(file, "BGR")
    records: dict[str, Any] = {
        "config_file": args.config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "confidence": args.confidence,
        "fields": FIELDS,
        "images": [],
        "videos": [],
    }
    with files_written_whole(args.output) as folder:
        predictor = load_predictor(cfg, whole=True)
        records["class_names"] = predictor.class_names
        with annotator(predictor, wiring=args.wiring) as annotate:
            for file, target in zip(tqdm(files, unit="file"), targets, strict=True):
                if is_video(file):
                    records["videos"].append(annotate_video(annotate, file, folder / target.name))
                else:
                    records["images"].append(annotate_image(annotate, file, folder / target.name))
        write_json(folder / RECORDS, records)
    frames = [frame for video in records["videos"] for frame in video["frames"]]
    count = sum(len(seen["detections"]) for seen in [*records["images"], *frames])
    print(
        f"images: {len(records['images'])}, videos: {len(records['videos'])}, of"
        f" {len(frames)} frames; detections of score > {args.confidence:g}: {count}"
        + ("" if count else " (lower --confidence to see weaker ones)")
    )
    print(f"written to {args.output}, detections to {args.output / RECORDS}")


if __name__ == "__main__":
    run_tool(main)
