"""Export a whole detector, from pixels to detections, to one ONNX or TorchScript file.

The file takes one image of any size: "image", uint8 [3, height, width] in the order of
INPUT.FORMAT, resized as at evaluation (INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST; bilinearly with
antialiasing, as Pillow does it), neither normalised nor padded. It gives "boxes", float32 [N, 4] of
left, top, right and bottom in pixels of that image, "scores" [N] and "classes" [N], the best first,
those of the config's SCORE_THRESH_TEST and above. Mask R-CNN's gives "masks" as well, Keypoint
R-CNN's "heatmaps", both on a grid over each box. Class names and the rest of what one must know are
in the file, as JSON under "dgnet_det.json": a metadata property in ONNX, an extra file in
TorchScript.

Before the file is kept it is run on images and compared with the detector it came from. If it finds
anything else, nothing is written.

dgnet_det.export.load_detector() and dgnet demo --exported run either file. ONNX needs the packages
onnx and onnxruntime.
Limits: one image at a time; nodes behind closed edges are computed all the same; a TorchScript file
keeps to the kind of device, MODEL.DEVICE, that it was exported on, and needs torchvision imported.

Examples:
    %(prog)s --input photographs/ --config-file output/config.yaml --format onnx \\
        --output detector.onnx MODEL.WEIGHTS output/model_final.pth
    %(prog)s --input photographs/ --config-file output/config.yaml \\
        --format torchscript --output detector.ts MODEL.WEIGHTS output/model_final.pth
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dgnet_cli import arguments

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts"}
MAX_IMAGES = 8


def images_to_compare(inputs: Sequence[str]) -> "dict[str, np.ndarray]":
    """Images [H, W, 3] BGR by name, each whole and its left half, which has another size and other
    content."""
    from dgnet_det.data import find_images, read_image

    files = find_images(inputs)
    images = {str(file): read_image(file, "BGR") for file in files[:: -(-len(files) // MAX_IMAGES)]}
    halves = {f"{name}, left half": x[:, : (x.shape[1] + 1) // 2] for name, x in images.items()}
    return images | halves


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the detector")
    parser.add_argument("--format", required=True, choices=SUFFIXES)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="to write: *.onnx or *.ts"
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help=f"images, or folders of images, to compare on, of which {MAX_IMAGES} are taken",
    )
    parser.add_argument("--json", metavar="FILE", help="write the comparison to this file")
    args = parser.parse_args(argv)
    if args.output.suffix != SUFFIXES[args.format]:
        parser.error(f"--output: a file of --format {args.format} ends in {SUFFIXES[args.format]}")

    import numpy as np

    from dgnet_det.config import load_cfg, with_own_weights
    from dgnet_det.errors import UserError
    from dgnet_det.export.exported import export_detector, load_detector
    from dgnet_det.export.predictor import (
        TOLERANCES,
        compare_detections,
        load_predictor,
        same_detections,
    )
    from dgnet_det.modeling.observation import record_decisions
    from dgnet_det.utils.files import write_json, written_whole

    device = ["MODEL.DEVICE", "cpu"] if args.format == "onnx" else []
    cfg = load_cfg(args.config_file, [*with_own_weights(args.config_file, args.opts), *device])
    images = images_to_compare(args.input)
    comparisons, alphas = {}, []
    with written_whole(args.output) as temporary:
        predictor = load_predictor(cfg)
        print(f"exporting {cfg.MODEL.WEIGHTS} …", flush=True)
        example = predictor.prepare(next(iter(images.values())))
        export_detector(predictor, example, temporary)
        exported = load_detector(temporary)
        for name, image in images.items():
            with record_decisions(predictor.model) as decisions:
                compared = compare_detections(predictor, exported, image)
            comparisons[name] = compared
            alphas.append([x for d in decisions.values() for x in d.value.flatten().tolist()])
            apart = ", ".join(f"{key} {value:.2g}" for key, value in compared.differences.items())
            print(
                f"[{len(comparisons)}/{len(images)}] {name}: {compared.expected} detections,"
                f" {compared.found} exported, {compared.unmatched} on one side alone; largest"
                f" differences: {apart}",
                flush=True,
            )
        if not any(compared.expected for compared in comparisons.values()):
            raise UserError(
                "no detection in any of these images, so nothing was compared: name --input images"
                " of what the detector was trained for; nothing was written"
            )
        if not same_detections(list(comparisons.values())):
            raise UserError(
                f"{args.output}: the exported detector differs from the original by more than"
                f" {TOLERANCES}, see above; nothing was written"
            )
    spread = float(np.ptp(alphas, axis=0).max(initial=0.0))
    print(f"between these images what routers say differed by up to {spread:.2g}")
    print(f"{args.output} written, {args.output.stat().st_size / 1e6:.1f} MB")
    if args.json:
        write_json(
            args.json,
            {
                "config_file": args.config_file,
                "weights": cfg.MODEL.WEIGHTS,
                "output": str(args.output),
                "alpha_spread": spread,
                "images": {name: compared._asdict() for name, compared in comparisons.items()},
            },
        )
