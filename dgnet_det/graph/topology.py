"""Which edges and nodes a graph has: all of the complete graph's, but for those that are pruned."""

import re
from collections.abc import Collection, Mapping, Sequence

from dgnet_det.errors import UserError

Edge = tuple[int, int]  # from node, to node
KEY = "MODEL.DGNET.PRUNED_EDGES"


def parse_edges(names: Sequence[str]) -> dict[str, set[Edge]]:
    """Edges by graph, ``{"res4.0": {(0, 3)}}``, of names as :func:`edge_name` makes them.

    Raises:
        UserError: a name of another form.
    """
    edges: dict[str, set[Edge]] = {}
    for name in names:
        match = re.fullmatch(r"(res\d\.\d+):(\d+)-(\d+)", str(name))
        if match is None:
            raise UserError(
                f"{KEY} {name!r}: give graph:from-to, such as 'res4.0:0-3', as"
                " tools/prune_model.py writes them"
            )
        edges.setdefault(match[1], set()).add((int(match[2]), int(match[3])))
    return edges


def edge_name(graph: str, edge: Edge) -> str:
    """``res4.0:0-3``."""
    return f"{graph}:{edge[0]}-{edge[1]}"


def routed_targets(
    num_nodes: int, pruned: Collection[Edge], *, residual: bool
) -> dict[int, Sequence[int]]:
    """For every node that has a router, the later nodes whose edges it weighs, in order.

    In the paper wiring a node that has lost its last input or its last output, directly or because
    of other nodes, is no longer there, nor are its edges. In the residual wiring the fixed chain
    keeps every node.

    Args:
        num_nodes: of the complete graph, N.
        pruned: edges that are not there.
        residual: whether the chain j-1 → j is fixed.

    Raises:
        UserError: an edge that routers do not weigh, or nothing is left to feed the output.
    """
    step = 2 if residual else 1
    for i, j in sorted(pruned):
        if not 0 <= i <= j - step <= num_nodes - 1 - step:
            why = (
                "is of the fixed chain" if residual and j == i + 1 < num_nodes else "does not exist"
            )
            raise UserError(f"{i}-{j} {why}: its nodes are 0 to {num_nodes - 1}")
    edges = {
        (i, j) for j in range(step, num_nodes) for i in range(j - step + 1) if (i, j) not in pruned
    }
    if not residual:
        edges = _from_input_to_output(edges, num_nodes)
        if not edges:
            raise UserError("nothing is left that feeds its output")
    targets = {i: [j for j in range(num_nodes) if (i, j) in edges] for i in range(num_nodes)}
    return {i: _compact(nodes) for i, nodes in targets.items() if nodes}


def all_targets(
    routed: Mapping[int, Sequence[int]], num_nodes: int, *, residual: bool
) -> list[Sequence[int]]:
    """For every node, the later nodes that it feeds: those of :func:`routed_targets` and, in the
    residual wiring, the next one."""
    targets: list[Sequence[int]] = [routed.get(i, ()) for i in range(num_nodes)]
    if residual:
        for i in range(num_nodes - 1):
            targets[i] = _compact([i + 1, *targets[i]])
    return targets


def sources_of(targets: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """For every node, the earlier nodes that feed it."""
    return [
        _compact([i for i, nodes in enumerate(targets) if j in nodes]) for j in range(len(targets))
    ]


def _compact(nodes: Sequence[int]) -> Sequence[int]:
    """The same ascending numbers, as a range if there is no gap between them."""
    if not nodes or nodes[-1] - nodes[0] >= len(nodes):
        return nodes
    return range(nodes[0], nodes[-1] + 1)


def _from_input_to_output(edges: set[Edge], num_nodes: int) -> set[Edge]:
    """The edges that lie on a path from the input to the output."""
    fed, feeding = {0}, {num_nodes - 1}
    for i, j in sorted(edges):
        if i in fed:
            fed.add(j)
    for i, j in sorted(edges, reverse=True):
        if j in feeding:
            feeding.add(i)
    return {(i, j) for i, j in edges if i in fed and j in feeding}
