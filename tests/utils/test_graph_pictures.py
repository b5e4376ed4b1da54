"""What is in the pictures of graphs."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from dgnet_det.utils.graph_pictures import CLOSED, GAP, ROW, GraphPanel, Scale, draw_graphs
from dgnet_det.utils.pictures import figure_pixels

ALPHA = Scale.of_alpha()


def make_panel(num_nodes: int, *, fixed_chain: bool = False, title: str = "res2.0") -> GraphPanel:
    """A graph with random values, whose edge 0 → 2 is closed."""
    edges = np.tri(num_nodes, k=-2 if fixed_chain else -1, dtype=bool)
    values = np.random.default_rng(0).uniform(0.1, 0.9, edges.shape)
    values[~edges] = values[2, 0] = np.nan
    return GraphPanel(title, edges, values, values, np.zeros(num_nodes, bool))


def graphs_of(figure: Figure) -> Axes:
    """The axes with the graphs, whose unit is the spacing of two nodes."""
    (axes,) = [a for a in figure.axes if any(isinstance(c, PolyCollection) for c in a.collections)]
    return axes


def cells_of(figure: Figure) -> list[PolyCollection]:
    return [c for c in graphs_of(figure).collections if isinstance(c, PolyCollection)]


def arcs_of(figure: Figure) -> tuple[list[np.ndarray], LineCollection]:
    """The closed arcs of the first graph, and its open ones."""
    closed, opened = (c for c in graphs_of(figure).collections if isinstance(c, LineCollection))
    return closed.get_segments(), opened


def texts_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("num_nodes", [4, 25])
@pytest.mark.parametrize("fixed_chain", [False, True])
def test_every_edge_has_an_arc_and_a_cell(num_nodes: int, fixed_chain: bool) -> None:
    panel = make_panel(num_nodes, fixed_chain=fixed_chain)
    figure = draw_graphs([panel], ALPHA, ALPHA)
    (cells,) = cells_of(figure)
    assert len(cells.get_paths()) == panel.edges.sum()
    closed, opened = arcs_of(figure)
    assert len(opened.get_segments()) == panel.edges.sum() - 1
    # The closed edge's cell is white; its arc goes from the input to node 2, two spacings wide.
    white = [tuple(color) == (1, 1, 1, 1) for color in cells.get_facecolor()]
    assert sum(white) == 1
    (arc,) = closed
    nodes = [line.get_xdata()[0] for line in graphs_of(figure).lines if line.get_marker() in "os"]
    np.testing.assert_allclose(arc[[0, -1], 0], [nodes[0], nodes[2]])
    assert arc[20, 1] > arc[0, 1] == pytest.approx(arc[-1, 1])
    lines = [c for c in graphs_of(figure).collections if isinstance(c, LineCollection)]
    np.testing.assert_allclose(lines[0].get_colors()[0], to_rgba(CLOSED))


def test_a_cell_hangs_below_the_middle_of_its_arc() -> None:
    values = np.where(np.tri(5, k=-1), np.arange(25).reshape(5, 5) / 25, np.nan)
    panel = make_panel(5)._replace(arcs=values, cells=values)
    figure = draw_graphs([panel], ALPHA, ALPHA)
    (cells,) = cells_of(figure)
    _, arcs = arcs_of(figure)
    middles = {
        tuple(np.round(color, 6)): arc[:, 0].mean()
        for arc, color in zip(arcs.get_segments(), arcs.get_colors(), strict=True)
    }
    assert len(middles) == 10
    for path, color in zip(cells.get_paths(), cells.get_facecolor(), strict=True):
        assert path.vertices[:4, 0].mean() == pytest.approx(middles[tuple(np.round(color, 6))])
    # The longest edge, 0 → 4, is the lowest cell.
    lowest = min(range(10), key=lambda k: cells.get_paths()[k].vertices[:4, 1].mean())
    expected = ALPHA.colors().to_rgba(np.array([20 / 25]))[0]
    np.testing.assert_allclose(cells.get_facecolor()[lowest], expected)


def test_wide_and_dark_is_a_large_value() -> None:
    values = np.array([[np.nan] * 3, [0.1, np.nan, np.nan], [0.5, 0.9, np.nan]])
    panel = make_panel(3)._replace(arcs=values, cells=values)
    figure = draw_graphs([panel], ALPHA, ALPHA)
    _, arcs = arcs_of(figure)
    assert np.all(np.diff(arcs.get_linewidths()) > 0)
    assert np.all(np.diff(arcs.get_colors()[:, :3].mean(axis=1)) < 0)
    assert {"0.10", "0.50", "0.90"} <= set(texts_of(graphs_of(figure)))


def test_weights_near_1_are_told_apart_by_colour() -> None:
    """Where a graph of the paper's wiring starts, every α is about 0.98."""
    colors = ALPHA.colors().to_rgba(np.array([0.96, 0.99, 0.5, 0.53]))
    near_1, in_the_middle = (np.abs(a - b).max() for a, b in (colors[:2], colors[2:]))
    assert near_1 > 0.1
    assert near_1 > in_the_middle
    ends = ALPHA.colors().to_rgba(np.array([0.0, 0.001, 0.999, 1.0]))
    assert np.array_equal(ends[0], ends[1])
    assert np.array_equal(ends[2], ends[3])
    brightness = ALPHA.colors().to_rgba(np.linspace(0.02, 0.98, 9))[:, :3].mean(axis=1)
    assert np.all(np.diff(brightness) < 0)


def test_titles_nodes_and_absent_nodes() -> None:
    panel = make_panel(5, title="res2.0: 9 of 10 open")
    figure = draw_graphs([panel, panel._replace(title="res3.0")], ALPHA, ALPHA)
    assert {"res2.0: 9 of 10 open", "res3.0", "in", "out", "1", "3"} <= set(
        texts_of(graphs_of(figure))
    )
    panel.absent[3] = True
    absent = draw_graphs([panel], ALPHA, ALPHA)
    circles = [line for line in graphs_of(absent).lines if line.get_marker() == "o"]
    assert [line.get_markeredgecolor() == CLOSED for line in circles] == [False, False, True]


@pytest.mark.parametrize("sizes", [[25], [3], [5, 6, 25, 5], [3, 4, 5, 6, 5, 5, 3], [5] * 9])
def test_layout(sizes: list[int]) -> None:
    """Rows are no wider than a page, graphs do not overlap, and all are on the paper."""
    panels = [make_panel(size, title=f"res{k}.0") for k, size in enumerate(sizes)]
    figure = draw_graphs(panels, Scale.of_gamma_alpha(0.04), ALPHA)
    axes = graphs_of(figure)
    width, height = axes.get_xlim()[1], -axes.get_ylim()[0]
    assert width <= max(ROW, max(sizes) - 1 + GAP)
    boxes = []
    for cells in cells_of(figure):
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
    # Nothing is cut off at the edges.
    pixels = figure_pixels(figure)
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()


def test_arcs_and_cells_of_different_kinds() -> None:
    scales = Scale("mean", 0, 1, "YlGnBu"), Scale("spread", 0, 0.4, "Greens")
    panel = make_panel(4)
    panel.cells[~np.isnan(panel.cells)] = 0.2
    figure = draw_graphs([panel], *scales, grey=("never open", "never there"))
    assert {"mean (arcs)", "spread (cells)"} <= {axes.get_ylabel() for axes in figure.axes}
    assert "never open" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts_of(graphs_of(figure)).count("0.20") == 5
