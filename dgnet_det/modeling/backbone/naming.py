"""Descriptions of families of blocks: their networks, and the names that other libraries give."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from dgnet_det.graph.stage import Network


class Blocks(NamedTuple):
    """A source's names for the tensors of blocks."""

    # Matches the start of a name, up to the name inside the block. Its groups are numbers.
    pattern: str
    node: Callable[..., str]  # from these numbers to the block's name in :class:`StagedBackbone`
    # Modules inside a block, from the source's names to ours. Other names stay as they are.
    inside: Mapping[str, str] = {}


class Format(NamedTuple):
    """The names that one source gives to a family's tensors. Mappings go from the source's modules
    to ours."""

    name: str
    # A pattern for the name of a tensor that every checkpoint of this format has and no checkpoint
    # of another format. The part of the name before it is the backbone's prefix.
    anchor: str
    stem: Mapping[str, str]
    blocks: tuple[Blocks, ...]
    # A classifier's layers behind the backbone, as this project's classifier names them.
    head: Mapping[str, str]
    # Patterns for the names that only an unsupported variant has, and what that variant is.
    unsupported: Mapping[str, str] = {}

    def rename(self, name: str) -> str | None:
        """:class:`StagedBackbone`'s name for a tensor, both without the backbone's prefix. None for
        a tensor outside the backbone."""
        for blocks in self.blocks:
            if block := re.match(blocks.pattern, name):
                inside = name[block.end() :]
                node = blocks.node(*map(int, block.groups()))
                return f"{node}.{substitute(inside, blocks.inside) or inside}"
        return substitute(name, self.stem)


class Family(NamedTuple):
    """A family of blocks."""

    name: str  # in MODEL.DGNET.FAMILY
    # Builds the stem and blocks from the image's channels, ``norm`` as for
    # detectron2.layers.get_norm, ``shortcuts`` (whether blocks keep their own), and ``arguments``.
    network: Callable[..., Network]
    # Reads the other arguments of ``network`` from a config.
    arguments: Callable[[CfgNode], dict[str, Any]]
    keys: str  # the config keys behind these arguments
    formats: tuple[Format, ...]


def own_format(tensor: str) -> Format:
    """:class:`StagedBackbone`'s own names, for a family whose nodes hold ``tensor``. Where branches
    are pruned, not all nodes do."""
    return Format(
        "dgnet_det",
        r"res\d\.\d+\.nodes\.\d+\." + re.escape(tensor),
        stem={"stem": "stem"},
        blocks=(Blocks(r"res([2-5])\.(\d+)\.", lambda k, i: f"res{k}.{i}"),),
        head={"head": "head"},
    )


def table(theirs: str, ours: str) -> dict[str, str]:
    """A mapping from the first of two rows of module names to the second."""
    return dict(zip(theirs.split(), ours.split(), strict=True))


def substitute(name: str, modules: Mapping[str, str]) -> str | None:
    """A tensor's name with its module renamed by ``modules``; None if the module is not there."""
    for theirs, ours in modules.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return None
