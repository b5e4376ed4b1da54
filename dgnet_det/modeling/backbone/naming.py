"""How a source of checkpoints names the tensors of a backbone."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

# Tensors that a graph has beside the nodes. A static network has none of them.
GRAPH_TENSOR = re.compile(r"res\d\.\d+\.(routers|thresholds|gammas|projection)\b")


class Format(NamedTuple):
    """The names that one source gives to a family's tensors."""

    name: str
    # A pattern for the name of a tensor that every checkpoint of this format holds and none of
    # another does. What stands before it is the prefix of the backbone.
    anchor: str
    # From a name without the prefix to :class:`DGNet`'s own; None for what is not of the backbone.
    # Names inside a stage that are not known pass through, so that they are found to be too many.
    rename: Callable[[str], str | None]
    # What a classifier has behind the backbone: rules as for :func:`substitute`, to the names that
    # this project's classifier gives it.
    head: tuple[tuple[str, str], ...]
    # Names that tell of a variant that is not supported: pattern, what it is.
    unsupported: tuple[tuple[str, str], ...] = ()


class Family(NamedTuple):
    """A family of blocks, named as in ``MODEL.DGNET.FAMILY``, and every format it comes in."""

    name: str
    formats: tuple[Format, ...]
    # The config keys that choose among the family's networks.
    keys: str


class Kind(NamedTuple):
    """How the network that a set of names belongs to is wired."""

    wiring: str  # paper, residual, or static: no graph at all
    edge_weights: str  # dynamic, static or none

    def __str__(self) -> str:
        if self == STATIC:
            return "a static network"
        return f"a DG-Net of {self.wiring} wiring and {self.edge_weights} edge weights"


STATIC = Kind("static", "none")


def kind_of(names: Iterable[str]) -> Kind:
    """The wiring that :class:`DGNet`'s own names tell of."""
    graph = [name for name in names if GRAPH_TENSOR.match(name)]
    if not graph:
        return STATIC
    wiring = "residual" if any(".gammas." in name for name in graph) else "paper"
    return Kind(wiring, "dynamic" if any(".linear." in name for name in graph) else "static")


def own_format(anchor: str) -> Format:
    """:class:`DGNet`'s own names, for a family whose nodes hold ``anchor``. Any node may be pruned,
    but hardly all."""

    def rename(name: str) -> str | None:
        return name if re.match(r"stem\.|res[2-5]\.\d+\.", name) else None

    pattern = r"res\d\.\d+\.nodes\.\d+\." + re.escape(anchor)
    return Format("dgnet_det", pattern, rename, head=((r"head\.", "head."),))


def substitute(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """``name`` after the first of the rules (pattern at its start, replacement) that matches."""
    for pattern, replacement in rules:
        replaced, matches = re.subn(rf"^(?:{pattern})", replacement, name)
        if matches:
            return replaced
    return name
