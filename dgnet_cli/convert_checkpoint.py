"""Convert a classification checkpoint into the weights of a DG-Net detection backbone.

INPUT is a checkpoint of torchvision, timm, Detectron2, MSRA/Caffe2, pycls (ResNet, ResNeXt,
MobileNetV2, RegNet) or of this project's own classifiers, as a file of torch.save or safetensors.
What training libraries wrap around a model is taken off. OUTPUT is what MODEL.WEIGHTS takes.

The config tells which backbone the tensors must fit. Two kinds have no place in it: the
classifier's head, and the routers, thresholds and γ that a static network lacks. Any other tensor
without a place is an error and nothing is written, unless --allow-partial is given.

Example:
    %(prog)s resnet50-11ad3fa6.pth weights/static-R-50.pth \\
        --config-file configs/COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml
"""

from collections.abc import Sequence
from functools import reduce

from dgnet_cli import arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, report, write."""
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the detector or classifier")
    parser.add_argument("input", metavar="INPUT", help="checkpoint to read: a file, or a URL")
    parser.add_argument("output", metavar="OUTPUT", help="checkpoint to write, .pth")
    parser.add_argument(
        "--allow-partial", action="store_true", help="write what matches, whatever does not"
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read INPUT by Python's full unpickler, which executes what the file says",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the report as JSON as well, also of a conversion that fails",
    )
    args = parser.parse_args(argv)

    from dgnet_det.checkpoint import convert, write_checkpoint
    from dgnet_det.config import load_cfg
    from dgnet_det.errors import UserError
    from dgnet_det.utils.files import write_json

    cfg = load_cfg(args.config_file, args.opts)
    conversion = convert(args.input, cfg, trust_pickle=args.trust_pickle)
    print(conversion.report())
    if args.json:
        write_json(args.json, conversion.figures())
    if conversion.problem and not args.allow_partial:
        raise UserError(
            f"{args.input}: {conversion.problem}; nothing written (--allow-partial writes the"
            " tensors that match)"
        )
    write_checkpoint(conversion.checkpoint, args.output)
    print(f"wrote {args.output}")

    if conversion.pixels is None:
        print("pixel order and statistics: those of the config that INPUT was trained with")
        return
    print("with these weights goes, unless their config or model card says otherwise:")
    for key, value in conversion.pixels.items():
        present = reduce(getattr, key.split("."), cfg)
        print(f"  {key} {value}" + ("" if present == value else f" (the config has {present})"))
