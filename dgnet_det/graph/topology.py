"""Which edges a graph has: those of the complete graph, but for those that are pruned."""

import re
from collections.abc import Collection, Sequence

from dgnet_det.errors import UserError

Edge = tuple[int, int]  # from node, to node
KEY = "MODEL.DGNET.PRUNED_EDGES"


def parse_edges(names: Sequence[str]) -> dict[str, set[Edge]]:
    """Edges by graph, ``{"res4.0": {(0, 3)}}``, of names as :func:`edge_name` makes them.

    Raises:
        UserError: a name of another form.
    """
    found = parse_pruned(KEY, names, r"\d+", "graph:from-to, such as 'res4.0:0-3'")
    return {graph: {(i, int(j)) for i, j in pairs} for graph, pairs in found.items()}


def parse_pruned(
    key: str, names: Sequence[str], end: str, form: str
) -> dict[str, list[tuple[int, str]]]:
    """What is pruned by stage, ``{"res4.0": [(0, "3")]}`` of ``res4.0:0-3``.

    Args:
        key: that holds the names.
        names: each a stage, a number, and what matches the pattern ``end``.
        form: of a name, for the message.

    Raises:
        UserError: a name of another form.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = re.fullmatch(rf"(res\d\.\d+):(\d+)-({end})", str(name))
        if match is None:
            raise UserError(f"{key} {name!r}: give {form}, as tools/prune_model.py writes them")
        found.setdefault(match[1], []).append((int(match[2]), match[3]))
    return found


def edge_name(graph: str, edge: Edge) -> str:
    """``res4.0:0-3``."""
    return f"{graph}:{edge[0]}-{edge[1]}"


def routed_edges(num_nodes: int, pruned: Collection[Edge], *, fixed_chain: bool) -> set[Edge]:
    """The edges that routers weigh.

    Without a fixed chain, a node that has lost its last input or its last output is gone, and its
    other edges with it.

    Args:
        num_nodes: of the complete graph, N = n + 2.
        pruned: edges that are not there.
        fixed_chain: whether the edges j-1 → j are fixed at 1, so that no router weighs them and no
            node is ever gone.

    Raises:
        UserError: a pruned edge that no router weighs, or nothing is left to feed the output.
    """
    step = 2 if fixed_chain else 1
    complete = {(i, j) for j in range(num_nodes) for i in range(j - step + 1)}
    for i, j in sorted(set(pruned) - complete):
        fixed = fixed_chain and j == i + 1 < num_nodes
        why = "is of the fixed chain" if fixed else "does not exist"
        raise UserError(f"{i}-{j} {why}: the nodes are 0 to {num_nodes - 1}")
    edges = complete - set(pruned)
    if fixed_chain:
        return edges
    reached, reaching = {0}, {num_nodes - 1}
    for i, j in sorted(edges):
        if i in reached:
            reached.add(j)
    for i, j in sorted(edges, reverse=True):
        if j in reaching:
            reaching.add(i)
    edges = {(i, j) for i, j in edges if i in reached and j in reaching}
    if not edges:
        raise UserError("nothing is left that feeds the output")
    return edges
