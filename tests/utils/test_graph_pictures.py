"""What is in the pictures of wirings."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from dgnet_det.modeling.observation import RecordedWiring
from dgnet_det.utils.graph_pictures import (
    CLOSED,
    MAX_ROW,
    GraphPanel,
    Scale,
    draw_graphs,
    draw_wiring,
    largest_weight,
)
from dgnet_det.utils.pictures import figure_pixels

IMAGE = np.full((40, 60, 3), 90, np.uint8)


def make_wiring(num_nodes: int, *, residual: bool) -> RecordedWiring:
    """Random weights of two samples, with the edge 0 → 2 closed in the first."""
    alpha = (0.1 + 0.8 * torch.rand(2, num_nodes, num_nodes)).tril(-1)
    alpha[0, 2, 0] = 0
    weight = alpha
    if residual:
        weight = alpha * torch.randn(num_nodes, num_nodes)
        for j in range(1, num_nodes):
            alpha[:, j, j - 1] = weight[:, j, j - 1] = 1
    return RecordedWiring(alpha, weight, residual)


def graphs_of(figure: Figure) -> Axes:
    """The axes with the graphs, whose unit is an inch."""
    (axes,) = [a for a in figure.axes if any(isinstance(c, PolyCollection) for c in a.collections)]
    return axes


def texts_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("residual", [False, True])
def test_every_edge_has_an_arc_and_a_cell(residual: bool) -> None:
    wirings = {
        "res2.0": make_wiring(4, residual=residual),
        "res3.0": make_wiring(25, residual=residual),
    }
    axes = graphs_of(draw_wiring(IMAGE, wirings))
    small, large = (c for c in axes.collections if isinstance(c, PolyCollection))
    shortest = 2 if residual else 1
    assert len(small.get_paths()) == sum(range(4 - shortest + 1))
    assert len(large.get_paths()) == sum(range(25 - shortest + 1))
    lines = [c for c in axes.collections if isinstance(c, LineCollection)]
    closed, _, weighted = lines[:3]
    assert len(closed.get_segments()) == 1
    assert len(weighted.get_segments()) == len(small.get_paths()) - 1
    # A closed edge is white with a cross; the arc is grey.
    white = [tuple(color) == (1, 1, 1, 1) for color in small.get_facecolor()]
    assert sum(white) == 1
    np.testing.assert_allclose(closed.get_colors()[0], to_rgba(CLOSED))
    # It is that from the input to node 2: a half ellipse, two spacings wide.
    (arc,) = closed.get_segments()
    nodes = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in ("o", "s")]
    np.testing.assert_allclose(arc[[0, -1], 0], [nodes[0], nodes[2]])
    assert arc[20, 1] > arc[0, 1] == pytest.approx(arc[-1, 1])
    # The second sample has all edges open.
    axes = graphs_of(draw_wiring(IMAGE, wirings, sample=1))
    closed = next(c for c in axes.collections if isinstance(c, LineCollection))
    assert not closed.get_segments()


def test_a_cell_hangs_below_the_middle_of_its_arc() -> None:
    wiring = make_wiring(5, residual=False)
    wiring.weight[1].copy_(torch.arange(25).reshape(5, 5).tril(-1) / 25)
    axes = graphs_of(draw_wiring(IMAGE, {"res2.0": wiring}, sample=1))
    scale = Scale.of_weights(False, 1.0).colors()
    (cells,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    weighted = [c for c in axes.collections if isinstance(c, LineCollection)][2]
    middles = {
        tuple(np.round(color, 6)): arc[:, 0].mean()
        for arc, color in zip(weighted.get_segments(), weighted.get_colors(), strict=True)
    }
    assert len(middles) == 10
    for path, color in zip(cells.get_paths(), cells.get_facecolor(), strict=True):
        assert path.vertices[:4, 0].mean() == pytest.approx(middles[tuple(np.round(color, 6))])
    # The longest edge, 0 → 4, is the lowest cell.
    lowest = min(range(10), key=lambda k: cells.get_paths()[k].vertices[:4, 1].mean())
    np.testing.assert_allclose(cells.get_facecolor()[lowest], scale.to_rgba(20 / 25))


def test_wide_and_dark_is_a_large_weight() -> None:
    wiring = make_wiring(3, residual=False)
    wiring.weight[1] = torch.tensor([[0, 0, 0], [0.1, 0, 0], [0.5, 0.9, 0]])
    axes = graphs_of(draw_wiring(IMAGE, {"res2.0": wiring}, sample=1))
    weighted = [c for c in axes.collections if isinstance(c, LineCollection)][2]
    widths = weighted.get_linewidths()
    assert np.all(np.diff(widths) > 0)
    assert np.all(np.diff(weighted.get_colors()[:, :3].mean(axis=1)) < 0)
    assert {"0.10", "0.50", "0.90"} <= set(texts_of(axes))


def test_one_scale_for_all_graphs() -> None:
    wirings = {name: make_wiring(3, residual=True) for name in ("res2.0", "res3.0")}
    for wiring in wirings.values():
        wiring.weight[0, 2, 0], wiring.alpha[0, 2, 0] = 0.3, 0.5
    axes = graphs_of(draw_wiring(IMAGE, wirings))
    first, second = (c.get_facecolor() for c in axes.collections if isinstance(c, PolyCollection))
    np.testing.assert_array_equal(first, second)
    # With a limit twice as large, the same weight is half as strong.
    axes = graphs_of(draw_wiring(IMAGE, wirings, limit=2 * largest_weight(wirings)))
    paler = next(c for c in axes.collections if isinstance(c, PolyCollection)).get_facecolor()
    assert paler[0, :3].mean() > first[0, :3].mean()


def test_titles_count_open_edges() -> None:
    wirings = {"res2.0": make_wiring(4, residual=False), "res2.1": make_wiring(5, residual=True)}
    texts = texts_of(graphs_of(draw_wiring(IMAGE, wirings)))
    assert "res2.0: 5 of 6 open" in texts
    assert "res2.1: 5 of 6 open" in texts
    assert {"in", "out", "1", "3"} <= set(texts)


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_absent_nodes_are_grey() -> None:
    wiring = make_wiring(5, residual=False)
    wiring.alpha[0, 3] = wiring.alpha[0, :, 3] = 0  # node 3 has no input and feeds nothing
    figure = draw_wiring(IMAGE, {"res2.0": wiring})
    circles = [line for line in graphs_of(figure).lines if line.get_marker() == "o"]
    assert [line.get_markeredgecolor() == CLOSED for line in circles] == [False, False, True]
    assert "absent node" in legend_of(figure)
    assert "absent node" not in legend_of(draw_wiring(IMAGE, {"res2.0": wiring}, sample=1))


def test_pruned_edges_are_not_drawn() -> None:
    wiring = make_wiring(5, residual=True)
    edges = wiring.routed().clone()
    edges[4, 1] = False
    axes = graphs_of(draw_wiring(IMAGE, {"res2.0": wiring._replace(edges=edges)}))
    (cells,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    assert len(cells.get_paths()) == 5
    assert "res2.0: 4 of 5 open" in texts_of(axes)


def test_largest_weight_leaves_the_chain_out() -> None:
    alpha = torch.ones(1, 4, 4).tril(-1)
    weight = alpha.clone()
    weight[0, 2, 0], weight[0, 3, 0], weight[0, 3, 1] = 0.1, -0.4, 0.2
    wiring = RecordedWiring(alpha, weight, residual=True)
    assert largest_weight({"res2.0": wiring}) == pytest.approx(0.4)
    # Before training every γ is 0, which must draw too.
    wiring = RecordedWiring(alpha, weight * 0, residual=True)
    draw_wiring(IMAGE, {"res2.0": wiring})


@pytest.mark.parametrize(
    ("scale", "value", "text"),
    [
        (Scale("", 0, 1, "Greens"), 0.256, "0.26"),
        (Scale("", -0.2, 0.2, "PuOr"), -0.051, "−0.05"),
        (Scale("", -0.05, 0.05, "PuOr"), 0.0214, "+0.021"),
    ],
)
def test_weights_are_written_with_the_decimals_that_tell_them_apart(
    scale: Scale, value: float, text: str
) -> None:
    assert scale.text(value) == text


@pytest.mark.parametrize("sizes", [[25], [3], [5, 6, 25, 5], [3, 4, 5, 6, 5, 5, 3], [5] * 9])
def test_layout(sizes: list[int]) -> None:
    """Rows are no wider than a page, graphs do not overlap, and all are on the paper."""
    wirings = {f"res{k}.0": make_wiring(size, residual=False) for k, size in enumerate(sizes)}
    axes = graphs_of(draw_wiring(IMAGE, wirings))
    width, height = axes.get_xlim()[1], -axes.get_ylim()[0]
    assert width <= MAX_ROW
    boxes = []
    for cells in (c for c in axes.collections if isinstance(c, PolyCollection)):
        corners = np.concatenate([path.vertices for path in cells.get_paths()])
        # The arcs rise as far above the nodes as the cells hang below, about.
        top = corners[:, 1].max()
        boxes.append((*corners.min(axis=0), corners[:, 0].max(), top + 0.2))
    for k, (left, bottom, right, top) in enumerate(boxes):
        assert left >= 0
        assert right <= width
        assert -height <= bottom
        for other in boxes[:k]:
            apart = left >= other[2] or right <= other[0] or bottom >= other[3] or top <= other[1]
            assert apart


def test_arcs_and_cells_of_different_kinds() -> None:
    edges = np.tri(4, k=-1, dtype=bool)
    mean, std = np.where(edges, 0.5, np.nan), np.where(edges, 0.2, np.nan)
    mean[2, 0] = std[2, 0] = np.nan
    panel = GraphPanel("res2.0", edges, mean, std, np.zeros(4, bool), residual=False)
    scales = Scale("mean", 0, 1, "YlGnBu"), Scale("spread", 0, 0.4, "Greens")
    figure = draw_graphs([panel], *scales, grey=("never open", "never there"))
    assert {"mean (arcs)", "spread (cells)"} <= {axes.get_ylabel() for axes in figure.axes}
    assert "never open" in legend_of(figure)
    assert texts_of(graphs_of(figure)).count("0.20") == 5
    assert figure_pixels(figure).std() > 10
