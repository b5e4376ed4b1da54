"""From a classification checkpoint to the weights of a detection backbone, or of a classifier."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from dgnet_det.checkpoint.reading import RENAMED_CAFFE2, local_file, read_checkpoint
from dgnet_det.config import is_classifier
from dgnet_det.errors import UserError, first_few
from dgnet_det.modeling.backbone.matching import Match, Source, match_backbone
from dgnet_det.modeling.build import config_errors_in_one_line
from dgnet_det.modeling.observation import dgnet_of

IMAGENET_MEAN_RGB = [123.675, 116.28, 103.53]
IMAGENET_STD_RGB = [58.395, 57.12, 57.375]
LISTED = 10  # names of each kind in the printed report
# What becomes of the tensors in the report for people.
KINDS = {
    "matched": "matched",
    "missing": "missing",
    "unexpected": "unexpected",
    "misshaped": "of another shape",
    "head": "of the classifier head, for classifiers alone",
    "others": "of other parts, left out",
    "untrained": "of routers, thresholds, γ and projections, which start untrained",
}


@dataclass(frozen=True)
class Conversion:
    """A checkpoint converted for a config's backbone."""

    # {"model": {name: tensor}, "__author__": str, "source": {str: str}}: tensors and strings alone,
    # for torch.load(weights_only=True).
    checkpoint: dict[str, Any]
    match: Match
    # The config values that go with the weights; None where only their own config knows.
    pixels: dict[str, Any] | None
    # Why the result is not whole; empty if it is.
    problem: str

    def figures(self) -> dict[str, Any]:
        """The report, as JSON takes it."""
        match = self.match
        return {
            "source": self.checkpoint["source"],
            "matched": list(match.tensors),
            "missing": match.missing,
            "unexpected": [*match.unexpected, *match.unknown],
            "misshaped": match.misshaped,
            "untrained": match.untrained,
            "head": list(match.head),
            "others": [*match.others, *match.left_out],
            "pixels": self.pixels,
        }

    def report(self) -> str:
        """The report for people: how many tensors of each kind, and the first that do not fit."""
        figures, source = self.figures(), self.checkpoint["source"]
        lines = [
            f"source: {source['file']}, sha256 {source['sha256']}",
            f"holds: {source['family']}, {self.match.kind}, names of {source['format']}",
        ]
        for kind, meaning in KINDS.items():
            tensors = figures[kind]
            lines.append(f"{meaning}: {len(tensors)}")
            if kind in ("missing", "unexpected", "misshaped"):
                lines += [f"  {tensor}" for tensor in tensors[:LISTED]]
                lines += ["  …"] if len(tensors) > LISTED else []
        return "\n".join(lines)


def convert(path: str, cfg: CfgNode, *, trust_pickle: bool = False) -> Conversion:
    """Name a checkpoint's tensors, in any of the formats of :data:`.families.FAMILIES`, as in the
    detector, or the classifier, that ``cfg`` describes. Its backbone tells which tensors there
    should be. ``trust_pickle`` is that of :func:`read_checkpoint`.

    Raises:
        UserError: the file cannot be read, holds no known backbone, one of another family or no
            tensor that fits, or ``cfg`` has no DG-Net backbone. Tensors that do not match are no
            error but :attr:`Conversion.problem`.
    """
    local = local_file(path)
    content = read_checkpoint(local, trust_pickle=trust_pickle)
    author = content.get("__author__", "")
    with config_errors_in_one_line():
        backbone = build_backbone(cfg)
    dgnet = dgnet_of(backbone)
    prefix = next(n for n, m in backbone.named_modules(prefix="backbone") if m is dgnet) + "."
    try:
        match = match_backbone(content["model"], dgnet, prefix)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    problem = "" if match.fits else match.misfit()
    if not match.tensors:
        raise UserError(f"{path}: {problem}")
    if match.unknown and not problem:
        problem = f"holds tensors of neither backbone nor head: {first_few(match.unknown, LISTED)}"
    source = {
        "file": Path(local).name,
        "sha256": hashlib.sha256(Path(local).read_bytes()).hexdigest(),
        "family": match.source.family.name,
        "format": "msra/caffe2" if author == RENAMED_CAFFE2 else match.source.format.name,
        "author": author,
        "wiring": match.kind.wiring,
        "edge_weights": match.kind.edge_weights,
    }
    model = {prefix + name: tensor for name, tensor in match.tensors.items()}
    if is_classifier(cfg):
        model |= match.head
    checkpoint = {"model": model, "__author__": "dgnet_det", "source": source}
    return Conversion(checkpoint, match, _pixels(match.source, author, cfg), problem)


def _pixels(source: Source, author: str, cfg: CfgNode) -> dict[str, Any] | None:
    """The config values that belong to weights whose file names an ``__author__``, or none, by key;
    None where only their own training config knows."""
    stride_in_1x1 = "MODEL.RESNETS.STRIDE_IN_1X1"
    if author == RENAMED_CAFFE2:
        # Detectron2's model zoo: MSRA's own ResNets have the stride in the 1x1 convolution; FAIR's
        # with group norm and FAIR's ResNeXt do not, and the latter divide by a deviation.
        is_resnext = cfg.MODEL.RESNETS.NUM_GROUPS > 1
        return {
            "INPUT.FORMAT": "BGR",
            "MODEL.PIXEL_MEAN": IMAGENET_MEAN_RGB[::-1],
            "MODEL.PIXEL_STD": IMAGENET_STD_RGB[::-1] if is_resnext else [1.0, 1.0, 1.0],
            stride_in_1x1: not is_resnext and cfg.MODEL.RESNETS.NORM != "GN",
        }
    if source.format.name.startswith("detectron2") and author != "torchvision":
        return None
    values: dict[str, Any] = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": IMAGENET_MEAN_RGB,
        "MODEL.PIXEL_STD": IMAGENET_STD_RGB,
    }
    return values | ({stride_in_1x1: False} if source.family.name == "resnet" else {})
