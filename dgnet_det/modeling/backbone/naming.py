"""What a family of blocks says of itself: its networks, and how other libraries name their
tensors."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from dgnet_det.graph.stage import Network

# Tensors that a graph has beside the nodes; the group is the graph. A static network has none.
GRAPH_TENSOR = re.compile(r"(res\d\.\d+)\.(?:routers|thresholds|gammas|projection)\b")


class Blocks(NamedTuple):
    """How a source names the tensors of blocks."""

    pattern: str  # of what stands before the names inside a block; its groups are numbers
    node: Callable[..., str]  # from these numbers to the block's name in :class:`DGNet`
    # The names inside a block. Others stay, so that they are found to be unexpected.
    inside: Mapping[str, str] = {}


class Format(NamedTuple):
    """The names that one source gives to a family's tensors. Mappings are from its modules to
    ours."""

    name: str
    # A pattern for the name of a tensor that every checkpoint of this format holds and none of
    # another does. What stands before it is the prefix of the backbone.
    anchor: str
    stem: Mapping[str, str]
    blocks: tuple[Blocks, ...]
    # What a classifier has behind the backbone, to the names in this project's classifier.
    head: Mapping[str, str]
    # Patterns of names that tell of a variant that is not supported, and what it is.
    unsupported: Mapping[str, str] = {}

    def rename(self, name: str) -> str | None:
        """:class:`DGNet`'s name for a tensor, both without the backbone's prefix; None for what is
        not of the backbone."""
        for blocks in self.blocks:
            if block := re.match(blocks.pattern, name):
                inside = name[block.end() :]
                node = blocks.node(*map(int, block.groups()))
                return f"{node}.{substitute(inside, blocks.inside) or inside}"
        return substitute(name, self.stem)


class Family(NamedTuple):
    """A family of blocks."""

    name: str  # in MODEL.DGNET.FAMILY
    # The stem and blocks, from the image's channels, ``norm`` as for detectron2.layers.get_norm,
    # ``shortcuts``, whether blocks have their own as in the static network, and what follows.
    network: Callable[..., Network]
    # What else of a config tells the family's networks apart.
    arguments: Callable[[CfgNode], dict[str, Any]]
    keys: str  # the config keys behind these arguments
    formats: tuple[Format, ...]


class Kind(NamedTuple):
    """How the network that a set of names belongs to is wired."""

    wiring: str  # paper, residual, routed: between branches, or static: no graph at all
    edge_weights: str  # dynamic, static or none

    def __str__(self) -> str:
        if self.wiring == "static":
            return "a static network"
        if self.wiring == "routed":
            return "a DRNet-style network"
        return f"a DG-Net of {self.wiring} wiring and {self.edge_weights} edge weights"


def kind_of(names: Iterable[str]) -> Kind:
    """The wiring that :class:`DGNet`'s own names tell of."""
    graph = [name for name in names if GRAPH_TENSOR.match(name)]
    if not graph:
        return Kind("static", "none")
    if any(".hidden." in name for name in graph):
        return Kind("routed", "dynamic")
    wiring = "residual" if any(".gammas." in name for name in graph) else "paper"
    return Kind(wiring, "dynamic" if any(".linear." in name for name in graph) else "static")


def own_format(tensor: str) -> Format:
    """:class:`DGNet`'s own names, for a family whose nodes hold ``tensor``. A node may be
    missing, where branches are pruned."""
    return Format(
        "dgnet_det",
        r"res\d\.\d+\.nodes\.\d+\." + re.escape(tensor),
        stem={"stem": "stem"},
        blocks=(Blocks(r"res([2-5])\.(\d+)\.", lambda k, i: f"res{k}.{i}"),),
        head={"head": "head"},
    )


def table(theirs: str, ours: str) -> dict[str, str]:
    """Two rows of module names, one below the other, as a mapping from the first to the second."""
    return dict(zip(theirs.split(), ours.split(), strict=True))


def substitute(name: str, modules: Mapping[str, str]) -> str | None:
    """A tensor's name with its module's as ``modules`` has it; None if that has no such module."""
    for theirs, ours in modules.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return None
