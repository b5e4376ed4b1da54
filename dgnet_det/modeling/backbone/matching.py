"""A checkpoint's tensors under the names of a backbone, and what does not fit."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from dgnet_det.errors import UserError, first_few
from dgnet_det.modeling.backbone.families import FAMILIES
from dgnet_det.modeling.backbone.naming import Family, Format, substitute

# Tensors that only a dynamic stage has; the group is the stage.
DYNAMIC = re.compile(r"(res\d\.\d+)\.(?:routers|copies|thresholds|gammas|projection)\b")
STATIC, ROUTED = "a static network", "a DRNet-style network"  # as :func:`kind_of` calls them
COUNTER = "num_batches_tracked"  # of a norm: a source and a backbone may each have it or not


class Source(NamedTuple):
    """The backbone in a checkpoint."""

    family: Family
    format: Format
    prefix: str  # before its names


@dataclass
class Match:
    """A checkpoint's tensors, sorted by where they belong, and what does not fit the backbone."""

    source: Source
    own: Mapping[str, Tensor]  # the backbone's state dict
    # For the backbone, under its names.
    tensors: dict[str, Tensor] = field(default_factory=dict)
    # Of stages that this backbone leaves out. A static res5 has the names of Detectron2's C4 heads.
    left_out: dict[str, Tensor] = field(default_factory=dict)
    # Of a classifier's head, under the names of this project's classifier.
    head: dict[str, Tensor] = field(default_factory=dict)
    # Of other parts, under the checkpoint's names.
    rest: dict[str, Tensor] = field(default_factory=dict)
    # The backbone's names that the source cannot have, and those that it should have and lacks.
    untrained: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    # Names that the backbone lacks, and both shapes, ``[4, 3] → [5, 3]``, of those that differ.
    unexpected: list[str] = field(default_factory=list)
    misshaped: dict[str, str] = field(default_factory=dict)

    def fitting(self) -> dict[str, Tensor]:
        """The checkpoint's tensors that fit the backbone."""
        others = {*self.unexpected, *self.misshaped}
        return {name: tensor for name, tensor in self.tensors.items() if name not in others}

    def state(self) -> dict[str, Tensor]:
        """What the backbone loads: its own tensors where the source cannot have them."""
        return self.tensors | {name: self.own[name] for name in self.untrained}

    def misfit(self) -> str:
        """One line on why the checkpoint does not fit; empty if it does."""
        misshaped = map(" ".join, self.misshaped.items())
        names = [*self.missing, *self.unexpected, *misshaped]
        if not names:
            return ""
        return (
            f"does not fit the backbone: {self._cause()} ({len(self.missing)} of {len(self.own)}"
            f" tensors missing, {len(self.misshaped)} of another shape, {len(self.unexpected)}"
            f" unexpected: {first_few(names, 10)})"
        )

    def _cause(self) -> str:
        theirs, ours = self.source.family, recognise(self.own).family
        if theirs is not ours:
            differ = f"it is a {theirs.name}, the config builds a {ours.name}"
            return f"{differ}; change MODEL.DGNET.FAMILY"
        kind, own_kind = kind_of(self.tensors), kind_of(self.own)
        if kind == STATIC and "paper" in own_kind:
            return (
                "the paper wiring cannot start from a static network; set MODEL.DGNET.WIRING to"
                " residual, or give the checkpoint of a DG-Net classifier"
            )
        routed = ROUTED in (kind, own_kind)
        if kind not in (STATIC, own_kind):
            keys = "MODEL.DGNET.WIRING or MODEL.DGNET.EDGE_WEIGHTS"
            keys = "MODEL.BACKBONE.NAME" if routed else keys
            return f"it is {kind}, the config builds {own_kind}; change {keys}"
        if not (self.missing or self.misshaped) and all(map(DYNAMIC.match, self.unexpected)):
            stages = ", ".join(sorted({name.split(".")[0] for name in self.unexpected}))
            differ = f"{stages}: dynamic in the checkpoint, plain in the config"
            return f"{differ}; name it in MODEL.DGNET.STAGES"
        if routed and any(".routers." in name for name in [*self.missing, *self.unexpected]):
            return (
                "it chooses between other branches; set MODEL.DRNET.BRANCHES and PRUNED_BRANCHES as"
                " in the config.yaml beside it"
            )
        keys = f"{ours.keys}, MODEL.DGNET.STAGES"
        return f"another depth, width or norm, other stages (check {keys}), or part of a checkpoint"


def kind_of(names: Iterable[str]) -> str:
    """Say how a :class:`StagedBackbone` with these names of tensors is wired."""
    dynamic = " ".join(name for name in names if DYNAMIC.match(name))
    if not dynamic:
        return STATIC
    if ".hidden." in dynamic:
        return ROUTED
    wiring = "residual" if ".gammas." in dynamic else "paper"
    weights = "dynamic" if ".linear." in dynamic else "static"
    return f"a DG-Net of {wiring} wiring and {weights} edge weights"


def recognise(names: Iterable[str], prefix: str = "") -> Source:
    """The backbone among a checkpoint's names. Of several, the one at ``prefix``.

    Raises:
        UserError: there is no backbone with known names, there are several and none is at
            ``prefix``, or it is an unsupported variant.
    """
    names = list(names)
    hits: dict[tuple[str, str], Source] = {}  # by the pattern and its place
    for family in FAMILIES.values():
        for form in family.formats:
            for match in filter(
                None, map(re.compile(rf"(|.*\.)(?:{form.anchor})").fullmatch, names)
            ):
                hits[form.anchor, match[1]] = Source(family, form, match[1])
    sources = [source for source in hits.values() if source.prefix == prefix] or list(hits.values())
    if not sources:
        first = f"; first name: {min(names)}" if names else ""
        raise UserError(f"holds no backbone with known names ({', '.join(FAMILIES)}){first}")
    if len(sources) > 1:
        found = ", ".join(repr(source.prefix) for source in sources)
        raise UserError(f"holds several backbones, at {found}: keep one of them in the file")
    (source,) = sources
    for pattern, what in source.format.unsupported.items():
        for name in names:
            if re.match(re.escape(source.prefix) + pattern, name):
                raise UserError(f"{name}: {what} is not supported")
    return source


def match_backbone(tensors: Mapping[str, Tensor], backbone: nn.Module, prefix: str = "") -> Match:
    """Rename a checkpoint's tensors for a :class:`StagedBackbone`, whose names in the model start
    with ``prefix``. Neither is changed.

    Raises:
        UserError: as :func:`recognise`.
    """
    match = Match(recognise(tensors, prefix), backbone.state_dict())
    _, format_, before = match.source
    # What a training library's module puts before all names of a model.
    outer = before.removesuffix(prefix) if before.endswith(prefix) else ""
    levels = {name.split(".")[0] for name in match.own}
    for name, tensor in tensors.items():
        inside = name.startswith(before)
        short = name.removeprefix(before if inside else outer)
        if inside and (target := format_.rename(short)):
            if target.split(".")[0] not in levels:
                match.left_out[target] = tensor
            elif target in match.own or not target.endswith(COUNTER):
                match.tensors[target] = tensor
        elif head := substitute(short, format_.head):
            match.head[head] = tensor
        else:
            match.rest[name.removeprefix(outer)] = tensor
    if not any(map(DYNAMIC.match, match.left_out)):
        match.left_out = {_in_c4_heads(name): x for name, x in match.left_out.items()}
    dynamic = {stage[1] for name in match.tensors if (stage := DYNAMIC.match(name))}
    can_start_static = "paper" not in kind_of(match.own)
    for name, tensor in match.own.items():
        if name not in match.tensors:
            stage = DYNAMIC.match(name)
            is_new = can_start_static and stage is not None and stage[1] not in dynamic
            (match.untrained if is_new or name.endswith(COUNTER) else match.missing).append(name)
        elif match.tensors[name].shape != tensor.shape:
            match.misshaped[name] = f"{list(match.tensors[name].shape)} → {list(tensor.shape)}"
    match.unexpected = [name for name in match.tensors if name not in match.own]
    return match


def _in_c4_heads(name: str) -> str:
    node = re.match(r"res5\.0\.nodes\.(\d+)", name)
    return f"roi_heads.res5.{int(node[1]) - 1}{name[node.end() :]}" if node else name


def load_static_names(
    backbone: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Rename in place what ``state_dict`` holds for a :class:`StagedBackbone` under another
    library's names, before torch loads it: a hook for ``register_load_state_dict_pre_hook``.

    A classifier's head and stages that the backbone leaves out are dropped. What a static network
    cannot have keeps its values. torch reports what does not fit; the cause is logged. torch shows
    a module only the names at its own prefix: load a bare backbone's file into the backbone alone,
    or by :class:`DGNetCheckpointer`.
    """
    tensors = {name: x for name, x in state_dict.items() if name.startswith(prefix)}
    if tensors.keys() == {prefix + name for name in backbone.state_dict()}:
        return
    logger = logging.getLogger(__name__)
    try:
        match = match_backbone(tensors, backbone, prefix)
    except UserError as error:
        logger.warning(
            "%s keeps its weights: what is loaded into it %s. Load a bare backbone's file by"
            " dgnet_det.checkpoint.DGNetCheckpointer, or convert it first by dgnet convert",
            prefix.removesuffix(".") or "the backbone",
            error,
        )
        return
    for name in tensors:
        del state_dict[name]
    state_dict.update({prefix + name: tensor for name, tensor in match.state().items()})
    state_dict.update(match.rest)
    source = f"{kind_of(match.tensors)} in the format {match.source.format.name}"
    if misfit := match.misfit():
        logger.warning("%s %s", source, misfit)
    elif match.untrained or match.source.format.name != "dgnet_det":
        logger.info("loading %d tensors from %s", len(match.fitting()), source)
