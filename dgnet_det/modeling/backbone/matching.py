"""Which tensors of a checkpoint go where in a backbone, and what does not fit."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from dgnet_det.errors import UserError, first_few
from dgnet_det.modeling.backbone.families import FAMILIES
from dgnet_det.modeling.backbone.naming import (
    GRAPH_TENSOR,
    Family,
    Format,
    Kind,
    kind_of,
    substitute,
)

COUNTER = "num_batches_tracked"  # of a norm: a source and a backbone may each have it or not


class Source(NamedTuple):
    """What a checkpoint holds."""

    family: Family
    format: Format
    prefix: str  # of the backbone's names


@dataclass
class Match:
    """A checkpoint's tensors against those of a backbone."""

    source: Source
    backbone: Mapping[str, Tensor]
    # The source's backbone under the names of ours, without the prefix of either.
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unfit: dict[str, Tensor] = field(default_factory=dict)  # unexpected, or of another shape
    missing: list[str] = field(default_factory=list)
    # In the backbone, and not to be expected in the checkpoint: they keep their values.
    untrained: list[str] = field(default_factory=list)
    # The classifier's head, under the names in this project's classifier.
    head: dict[str, Tensor] = field(default_factory=dict)
    # The rest, under the checkpoint's names: of stages that this backbone leaves out, beside the
    # backbone, and at its prefix without being of the backbone.
    left_out: list[str] = field(default_factory=list)
    others: dict[str, Tensor] = field(default_factory=dict)
    unknown: dict[str, Tensor] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether every tensor of the backbone that the source should hold is there, and no
        other."""
        return not (self.missing or self.unfit)

    @property
    def kind(self) -> Kind:
        """How the source is wired."""
        return kind_of([*self.tensors, *self.unfit])

    @property
    def unexpected(self) -> list[str]:
        """What the backbone does not have."""
        return [name for name in self.unfit if name not in self.backbone]

    @property
    def misshaped(self) -> list[str]:
        """What has another shape, as ``name [4, 3] → [5, 3]``: the checkpoint's, the backbone's."""
        return [
            f"{name} {list(tensor.shape)} → {list(self.backbone[name].shape)}"
            for name, tensor in self.unfit.items()
            if name in self.backbone
        ]

    def misfit(self) -> str:
        """One line on why the checkpoint does not fit, and what does not."""
        names = [*self.missing, *self.unexpected, *self.misshaped]
        return (
            f"does not fit the backbone: {self._cause()} ({len(self.missing)} of"
            f" {len(self.backbone)} tensors missing, {len(self.misshaped)} of another shape,"
            f" {len(self.unexpected)} unexpected: {first_few(names, 10)})"
        )

    def _cause(self) -> str:
        family = recognise(self.backbone).family
        theirs, ours = self.kind, kind_of(self.backbone)
        if self.source.family is not family:
            return (
                f"it is a {self.source.family.name}, the config builds a {family.name}; change"
                " MODEL.DGNET.FAMILY"
            )
        if theirs.wiring == "static" and ours.wiring == "paper":
            return (
                "the paper wiring cannot start from a static network; set MODEL.DGNET.WIRING to"
                " residual, or give the checkpoint of a DG-Net classifier"
            )
        if theirs.wiring != "static" and theirs != ours:
            routed = "routed" in (theirs.wiring, ours.wiring)
            keys = "MODEL.DGNET.WIRING or MODEL.DGNET.EDGE_WEIGHTS"
            return (
                f"it is {theirs}, the config builds {ours}; change"
                f" {'MODEL.BACKBONE.NAME' if routed else keys}"
            )
        if not (self.missing or self.misshaped) and all(map(GRAPH_TENSOR.match, self.unexpected)):
            stages = sorted({name.split(".")[0] for name in self.unexpected})
            return (
                f"{', '.join(stages)}: a graph in the checkpoint, plain in the config; name it in"
                " MODEL.DGNET.STAGES"
            )
        return (
            f"another depth, width or norm (check {family.keys}), other MODEL.DGNET.STAGES, or part"
            " of a checkpoint"
        )


def recognise(names: Iterable[str], prefix: str = "") -> Source:
    """The family, format and prefix of the backbone among a checkpoint's names; where there are
    several backbones, of that at ``prefix``.

    Raises:
        UserError: there is no backbone with known names, there are several, or it is a variant
            that is not supported.
    """
    names = list(names)
    hits = {
        (format_.anchor, match[1]): Source(family, format_, match[1])
        for family in FAMILIES.values()
        for format_ in family.formats
        for name in names
        if (match := re.fullmatch(rf"(|.*\.)(?:{format_.anchor})", name))
    }
    sources = list(hits.values())
    sources = [source for source in sources if source.prefix == prefix] or sources
    if not sources:
        first = f"; first name: {min(names)}" if names else ""
        raise UserError(f"holds no backbone with known names ({', '.join(FAMILIES)}){first}")
    if len(sources) > 1:
        found = ", ".join(repr(source.prefix) for source in sources)
        raise UserError(f"holds several backbones, at {found}: keep one of them in the file")
    (source,) = sources
    for pattern, what in source.format.unsupported.items():
        hit = next((x for x in names if re.match(re.escape(source.prefix) + pattern, x)), None)
        if hit is not None:
            raise UserError(f"{hit}: {what} is not supported")
    return source


def match_backbone(tensors: Mapping[str, Tensor], backbone: nn.Module, prefix: str = "") -> Match:
    """Match a checkpoint's tensors to those of a :class:`DGNet`, which has ``prefix`` before its
    names in the model. Neither is changed.

    Raises:
        UserError: as :func:`recognise`.
    """
    match = Match(recognise(tensors, prefix), backbone.state_dict())
    _, format_, source_prefix = match.source
    parts = {name.split(".")[0] for name in match.backbone}
    for name, tensor in tensors.items():
        inside = name.startswith(source_prefix)
        short = name.removeprefix(source_prefix)
        target = format_.rename(short) if inside else None
        if target is None:
            if head := substitute(short, format_.head):
                match.head[head] = tensor
            else:
                (match.unknown if inside else match.others)[name] = tensor
        elif target.split(".")[0] not in parts:
            match.left_out.append(name)
        elif target in match.backbone and tensor.shape == match.backbone[target].shape:
            match.tensors[target] = tensor
        elif not target.endswith(COUNTER):
            match.unfit[target] = tensor
    found = {**match.tensors, **match.unfit}
    graphs = {graph[1] for name in found if (graph := GRAPH_TENSOR.match(name))}
    starts_static = kind_of(match.backbone).wiring != "paper"
    for name in [name for name in match.backbone if name not in found]:
        graph = GRAPH_TENSOR.match(name)
        is_new = graph is not None and starts_static and graph[1] not in graphs
        optional = is_new or name.endswith(COUNTER)
        (match.untrained if optional else match.missing).append(name)
    return match


def load_static_names(backbone: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Rename in place what ``state_dict`` holds for a :class:`DGNet` under another library's names,
    before torch loads it.

    A classifier's head and stages that the backbone leaves out are dropped. A graph's tensors that
    a static network cannot hold keep their values. What does not fit is left to torch to report;
    its cause is logged. torch shows a module only the names at its own prefix: the file of a bare
    backbone is loaded into the backbone alone, or by :class:`DGNetCheckpointer`.

    The arguments are those of ``nn.Module._load_from_state_dict``.
    """
    logger = logging.getLogger(__name__)
    tensors = {name: x for name, x in state_dict.items() if name.startswith(prefix)}
    try:
        match = match_backbone(tensors, backbone, prefix)
    except UserError as error:
        logger.warning(
            "%s keeps its weights: what is loaded into it %s. Load a bare backbone's file by"
            " dgnet_det.checkpoint.DGNetCheckpointer, or convert it first by"
            " tools/convert_checkpoint.py",
            prefix.removesuffix(".") or "the backbone",
            error,
        )
        return
    for name in tensors:
        del state_dict[name]
    ours = match.tensors | match.unfit | {name: match.backbone[name] for name in match.untrained}
    state_dict.update({prefix + name: tensor for name, tensor in ours.items()})
    state_dict.update(match.others | match.unknown)
    source = f"{match.kind} in the format {match.source.format.name}"
    if not match.fits:
        logger.warning("%s %s", source, match.misfit())
    elif match.untrained or match.source.format.name != "dgnet_det":
        logger.info("loading %d tensors from %s", len(match.tensors), source)
