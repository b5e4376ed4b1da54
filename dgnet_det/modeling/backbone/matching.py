"""Which tensors of a checkpoint go where in a backbone, and what does not fit."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor

from dgnet_det.errors import UserError
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.backbone.names_mobilenetv2 import MOBILENETV2
from dgnet_det.modeling.backbone.names_regnet import REGNET
from dgnet_det.modeling.backbone.names_resnet import RESNET
from dgnet_det.modeling.backbone.naming import (
    GRAPH_TENSOR,
    STATIC,
    Family,
    Format,
    Kind,
    kind_of,
    substitute,
)

# One more family is one more file with its table, listed here.
FAMILIES = (RESNET, MOBILENETV2, REGNET)


class Source(NamedTuple):
    """What a checkpoint holds."""

    family: Family
    format: Format
    prefix: str  # of the backbone's names


@dataclass
class Match:
    """A checkpoint's tensors against a backbone's. Names are the backbone's own, without the
    prefix that it has in a detector; those of ``others`` and ``unknown`` are the checkpoint's."""

    source: Source
    kind: Kind = STATIC
    tensors: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    # name, shape in the checkpoint, shape in the backbone
    misshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    # In the backbone, and not to be expected in a static checkpoint: they start untrained.
    untrained: list[str] = field(default_factory=list)
    # The classifier's head, under the names that this project's classifier gives it.
    head: dict[str, Tensor] = field(default_factory=dict)
    # Outside the backbone, or of a stage that this one leaves out.
    others: list[str] = field(default_factory=list)
    # Beside the backbone and the head.
    unknown: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether every tensor of the backbone that the source should hold is there, and no
        other."""
        return not (self.missing or self.unexpected or self.misshaped)


def recognise(names: Iterable[str], prefix: str = "") -> Source:
    """The family, format and prefix of a checkpoint's backbone.

    Args:
        names: of the checkpoint's tensors.
        prefix: the one to prefer where there are several backbones.

    Raises:
        UserError: there is no backbone with known names, there are several, or it is a variant
            that is not supported.
    """
    names = list(names)
    hits = [
        Source(family, format_, match[1])
        for family in FAMILIES
        for format_ in family.formats
        for name in names
        if (match := re.fullmatch(rf"(|.*\.)(?:{format_.anchor})", name))
    ]
    sources = list(dict.fromkeys(hits))
    preferred = [source for source in sources if source.prefix == prefix]
    if len(preferred or sources) > 1:
        found = ", ".join(repr(source.prefix) for source in sources)
        raise UserError(f"holds several backbones, at {found}: keep one of them in the file")
    for source in preferred or sources:
        for pattern, what in source.format.unsupported:
            hit = next((x for x in names if re.match(re.escape(source.prefix) + pattern, x)), None)
            if hit is not None:
                raise UserError(f"{hit}: {what} is not supported")
        return source
    known = ", ".join(family.name for family in FAMILIES)
    raise UserError(f"holds no backbone with known names ({known}); first name: {min(names)}")


def match_backbone(
    tensors: Mapping[str, Tensor], backbone: DGNet, *, prefix: str = "", folded_norm: bool = False
) -> Match:
    """Match a checkpoint's tensors to the backbone's. Neither is changed.

    Args:
        tensors: the checkpoint's.
        backbone: the one to be loaded.
        prefix: of the backbone's names in the model.
        folded_norm: the source keeps no running statistics, having folded them into the norms'
            affine parameters (Caffe2). A :class:`FrozenBatchNorm2d` then gets the identity's.

    Raises:
        UserError: as :func:`recognise`.
    """
    match = Match(recognise(tensors, prefix))
    _, format_, source_prefix = match.source
    wanted = backbone.state_dict()
    parts = {"stem", *backbone.stage_names}
    found = []
    for name, tensor in tensors.items():
        inside = name.startswith(source_prefix)
        short = name[len(source_prefix) :] if inside else name
        target = format_.rename(short) if inside else None
        if target is not None:
            found.append(target)
        if target is None:
            if any(re.match(pattern, short) for pattern, _ in format_.head):
                match.head[substitute(short, format_.head)] = tensor
            else:
                (match.unknown if inside else match.others).append(name)
        elif target.split(".")[0] not in parts:
            match.others.append(name)
        elif target not in wanted:
            if not target.endswith("num_batches_tracked"):
                match.unexpected.append(target)
        elif tensor.shape != wanted[target].shape:
            shapes = tuple(tensor.shape), tuple(wanted[target].shape)
            match.misshaped.append((target, *shapes))
        else:
            match.tensors[target] = tensor

    match.kind = kind_of(found)
    from_static = match.kind.wiring == "static" and kind_of(wanted).wiring != "paper"
    misshaped = {name for name, _, _ in match.misshaped}
    for name in wanted:
        if name in match.tensors or name in misshaped or name.endswith("num_batches_tracked"):
            continue
        identity = _identity_statistic(backbone, name) if folded_norm else None
        if from_static and GRAPH_TENSOR.match(name):
            match.untrained.append(name)
        elif identity is not None:
            match.tensors[name] = identity
        else:
            match.missing.append(name)
    return match


def misfit(match: Match, backbone: DGNet) -> str:
    """One line on why a checkpoint does not fit, and what does not."""
    names = match.missing + match.unexpected + [name for name, _, _ in match.misshaped]
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return (
        f"does not fit the backbone: {_cause(match, backbone)} ({len(match.missing)} of"
        f" {len(backbone.state_dict())} tensors missing, {len(match.misshaped)} of another shape,"
        f" {len(match.unexpected)} unexpected: {listed})"
    )


def _cause(match: Match, backbone: DGNet) -> str:
    names = backbone.state_dict().keys()
    family, kind = recognise(names).family, kind_of(names)
    if match.source.family is not family:
        return (
            f"it is a {match.source.family.name}, the config builds a {family.name}; change"
            " MODEL.DGNET.FAMILY"
        )
    if kind.wiring == "paper" and match.kind.wiring == "static":
        return (
            "the paper wiring cannot start from a static network; set MODEL.DGNET.WIRING to"
            " residual, or give the checkpoint of a DG-Net classifier"
        )
    if match.kind not in (kind, STATIC):
        return (
            f"it is {match.kind}, the config builds {kind}; change MODEL.DGNET.WIRING or"
            " MODEL.DGNET.EDGE_WEIGHTS"
        )
    return (
        f"another depth, width or norm (check {family.keys}), other MODEL.DGNET.PRUNED_EDGES, or"
        " part of a checkpoint"
    )


def _identity_statistic(backbone: DGNet, name: str) -> Tensor | None:
    """The running statistic under which a frozen norm is its affine parameters alone."""
    module_name, _, tensor_name = name.rpartition(".")
    norm = backbone.get_submodule(module_name)
    if not isinstance(norm, FrozenBatchNorm2d):
        return None
    if tensor_name == "running_mean":
        return torch.zeros(norm.num_features)
    return torch.ones(norm.num_features) - norm.eps if tensor_name == "running_var" else None
