"""Conversion of checkpoints to the weights of a detection backbone, or of a classifier."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from dgnet_det.checkpoint.reading import RENAMED_CAFFE2, local_file, read_checkpoint
from dgnet_det.config import is_classifier
from dgnet_det.errors import UserError, first_few
from dgnet_det.modeling.backbone.matching import Source, kind_of, match_backbone
from dgnet_det.modeling.observation import dgnet_of

IMAGENET_MEAN_RGB = [123.675, 116.28, 103.53]
IMAGENET_STD_RGB = [58.395, 57.12, 57.375]
LISTED = 10  # names of each kind in the printed report
# The kinds of tensors in the report, and what it calls them.
KINDS = {
    "matched": "matched",
    "missing": "missing",
    "unexpected": "unexpected",
    "misshaped": "of another shape",
    "head": "of the classifier's head, which detectors do not take",
    "others": "of other parts, left out",
    "untrained": "of routers, thresholds, γ and projections, which start untrained",
}


@dataclass(frozen=True)
class Conversion:
    """A checkpoint converted for a config's backbone."""

    # {"model": {name: tensor}, "__author__": str, "source": {str: str}}, for weights_only=True
    checkpoint: dict[str, Any]
    tensors: dict[str, list[str]]  # names by kind, see KINDS
    pixels: dict[str, Any] | None  # config values for the weights; None where only their own knows
    problem: str  # why the result is not whole; empty if it is

    def figures(self) -> dict[str, Any]:
        """The report for JSON."""
        return {"source": self.checkpoint["source"], **self.tensors, "pixels": self.pixels}

    def report(self) -> str:
        """The report for people: how many tensors of each kind, and the first that do not fit."""
        source = self.checkpoint["source"]
        lines = [
            f"source: {source['file']}, sha256 {source['sha256']}",
            f"holds: {source['family']}, {source['kind']}, names of {source['format']}",
        ]
        for kind, meaning in KINDS.items():
            names = self.tensors[kind]
            lines.append(f"{meaning}: {len(names)}")
            if kind in ("missing", "unexpected", "misshaped"):
                lines += [f"  {name}" for name in names[:LISTED]]
                lines += ["  …"] * (len(names) > LISTED)
        return "\n".join(lines)


def convert(path: str, cfg: CfgNode, *, trust_pickle: bool = False) -> Conversion:
    """Rename a checkpoint's tensors, in any of the formats of :data:`.families.FAMILIES`, for the
    detector or classifier that ``cfg`` describes. ``trust_pickle`` is as for
    :func:`read_checkpoint`.

    Raises:
        UserError: the file cannot be read, holds no known backbone, one of another family or no
            tensor that fits, or ``cfg`` has no DG-Net backbone. Tensors that do not fit are no
            error but :attr:`Conversion.problem`.
    """
    local = local_file(path)
    content = read_checkpoint(local, trust_pickle=trust_pickle)
    author = content.get("__author__", "")
    backbone = build_backbone(cfg)
    dgnet = dgnet_of(backbone)
    prefix = next(n for n, m in backbone.named_modules(prefix="backbone") if m is dgnet) + "."
    try:
        match = match_backbone(content["model"], dgnet, prefix)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    fitting, problem = match.fitting(), match.misfit()
    if not fitting:
        raise UserError(f"{path}: {problem}")
    unknown = [name for name in match.rest if name.startswith(match.source.prefix)]
    if unknown and not problem:
        problem = f"holds tensors of neither backbone nor head: {first_few(unknown, LISTED)}"
    c4_heads = {name: x for name, x in match.left_out.items() if name.startswith("roi_heads.")}
    model = {prefix + name: tensor for name, tensor in fitting.items()} | c4_heads
    if is_classifier(cfg):
        model |= match.head
    others = {**match.rest, **match.left_out}.keys() - {*unknown, *c4_heads}
    tensors = {
        "matched": [*fitting, *c4_heads],
        "missing": match.missing,
        "unexpected": [*match.unexpected, *unknown],
        "misshaped": list(map(" ".join, match.misshaped.items())),
        "head": list(match.head),
        "others": sorted(others),
        "untrained": match.untrained,
    }
    source = {
        "file": Path(local).name,
        "sha256": hashlib.sha256(Path(local).read_bytes()).hexdigest(),
        "family": match.source.family.name,
        "format": "msra/caffe2" if author == RENAMED_CAFFE2 else match.source.format.name,
        "author": author,
        "kind": kind_of(match.tensors),
    }
    checkpoint = {"model": model, "__author__": "dgnet_det", "source": source}
    return Conversion(checkpoint, tensors, _pixels(match.source, author, cfg), problem)


def _pixels(source: Source, author: str, cfg: CfgNode) -> dict[str, Any] | None:
    """The config values, by key, that go with weights whose file names an ``__author__``, or none.
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
    values: dict[str, Any] = {"INPUT.FORMAT": "RGB"}
    values |= {"MODEL.PIXEL_MEAN": IMAGENET_MEAN_RGB, "MODEL.PIXEL_STD": IMAGENET_STD_RGB}
    return values | ({stride_in_1x1: False} if source.family.name == "resnet" else {})
