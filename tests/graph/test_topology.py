"""Which edges and nodes pruning leaves, against graphs worked out by hand."""

import pytest

from dgnet_det.errors import UserError
from dgnet_det.graph.topology import (
    Edge,
    edge_name,
    parse_edges,
    routed_edges,
)


def targets(num_nodes: int, pruned: set[Edge], *, residual: bool = False) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i, j in sorted(routed_edges(num_nodes, pruned, fixed_chain=residual)):
        found.setdefault(i, []).append(j)
    return found


def test_complete_graphs() -> None:
    assert targets(4, set()) == {0: [1, 2, 3], 1: [2, 3], 2: [3]}
    assert targets(4, set(), residual=True) == {0: [2, 3], 1: [3]}


@pytest.mark.parametrize(
    ("pruned", "left"),
    [
        # A single edge takes no node with it.
        ({(0, 2)}, {0: [1, 3, 4], 1: [2, 3, 4], 2: [3, 4], 3: [4]}),
        # Node 1 loses its one input.
        ({(0, 1)}, {0: [2, 3, 4], 2: [3, 4], 3: [4]}),
        # Node 3 loses its one output: 0, 1 and 2 no longer feed it.
        ({(3, 4)}, {0: [1, 2, 4], 1: [2, 4], 2: [4]}),
        # Node 1 goes, and with it node 2, which only node 1 fed.
        ({(0, 1), (0, 2)}, {0: [3, 4], 3: [4]}),
        # Node 3 goes, and with it node 2, which fed only node 3.
        ({(3, 4), (2, 4)}, {0: [1, 4], 1: [4]}),
        # All blocks go.
        ({(0, 1), (0, 2), (0, 3)}, {0: [4]}),
    ],
)
def test_paper_wiring(pruned: set[Edge], left: dict[int, list[int]]) -> None:
    assert targets(5, pruned) == left


@pytest.mark.parametrize(
    ("pruned", "left"),
    [
        ({(0, 3)}, {0: [2, 4], 1: [3, 4], 2: [4]}),
        # Without an edge to weigh there is no router; the chain keeps the node.
        ({(2, 4)}, {0: [2, 3, 4], 1: [3, 4]}),
        ({(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4)}, {}),
    ],
)
def test_residual_wiring(pruned: set[Edge], left: dict[int, list[int]]) -> None:
    assert targets(5, pruned, residual=True) == left


@pytest.mark.parametrize(
    ("pruned", "residual", "message"),
    [
        ({(0, 5)}, False, "0-5 does not exist: the nodes are 0 to 4"),
        ({(2, 2)}, False, "2-2 does not exist"),
        ({(3, 1)}, False, "3-1 does not exist"),
        ({(1, 2)}, True, "1-2 is of the fixed chain"),
        ({(4, 5)}, True, "4-5 does not exist"),
        ({(0, 4), (1, 4), (2, 4), (3, 4)}, False, "nothing is left that feeds the output"),
        ({(0, 4), (0, 1), (0, 2), (0, 3)}, False, "nothing is left that feeds the output"),
    ],
)
def test_impossible_prunings(pruned: set[Edge], residual: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        targets(5, pruned, residual=residual)


def test_names() -> None:
    assert edge_name("res4.1", (0, 12)) == "res4.1:0-12"
    assert parse_edges(["res4.1:0-12", "res2.0:1-3", "res4.1:2-3"]) == {
        "res4.1": {(0, 12), (2, 3)},
        "res2.0": {(1, 3)},
    }


@pytest.mark.parametrize("name", ["res4:0-3", "res4.0:0", "res4.0:0>3", "4.0:0-3", "", 3])
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(UserError, match=r"MODEL.DGNET.PRUNED_EDGES .*give graph:from-to"):
        parse_edges([name])
