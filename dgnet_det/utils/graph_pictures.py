"""Graphs as the paper draws them: their nodes on a line, their edges as arcs above it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import FuncNorm, Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import expit, logit

# Inches. A graph is drawn at one of two sizes.
SPACING, SMALL_SPACING = 0.56, 0.3  # of neighbouring nodes
LARGE_GRAPH = 12  # nodes, from which on the spacing is the small one
ARC, CELL = 0.3, 0.36  # height of an arc for each node that it spans, and of a cell, in spacings
SIDE, BOTTOM, TITLE = 0.35, 0.3, 0.42  # margins of a graph
MAX_ROW = 11.5
BAR = 1.1  # width that a colour bar takes
LEGEND = 0.35  # height of the legend
MAX_WRITTEN = 8  # nodes of a graph whose values are written into its cells

CLOSED, ABSENT, CHAIN, FAINT = "0.72", "0.94", "0.2", "0.88"
HALF_CIRCLE = np.linspace(0, np.pi, 41)
ALPHA_TICKS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)


class Scale(NamedTuple):
    """What the values of a picture are, and the colours that stand for them."""

    label: str
    low: float
    high: float
    colormap: str
    sigmoid: bool = False  # whether colours are evenly spaced in the logit of a value

    @classmethod
    def of_alpha(cls) -> "Scale":
        """Of α, from 0 to 1. Colours follow the router's output before its sigmoid: they also tell
        weights near 1 apart, where a trained graph may start."""
        return cls("edge weight α", 0.01, 0.99, "YlGnBu", sigmoid=True)

    @classmethod
    def of_gamma_alpha(cls, limit: float) -> "Scale":
        """Of γ·α up to ±``limit``."""
        # Before training all γ are 0, and any scale shows that.
        return cls("edge weight γ·α", -(limit or 1.0), limit or 1.0, "PuOr")

    def colors(self) -> ScalarMappable:
        """The mapping from values to colours."""
        norm = Normalize(self.low, self.high)
        if self.sigmoid:
            norm = FuncNorm((logit, expit), self.low, self.high, clip=True)
        return ScalarMappable(norm, colormaps[self.colormap])

    def strength(self, values: np.ndarray) -> np.ndarray:
        """How large values are, from 0 to 1."""
        return np.clip(np.abs(values) / max(abs(self.low), abs(self.high)), 0, 1)

    def text(self, value: float) -> str:
        """A value with as many decimals as tell it apart on the scale."""
        decimals = 2 if self.high >= 0.1 else 3
        sign = "+" if self.low < 0 and round(value, decimals) else ""
        # Adding 0 makes 0 of -0.
        return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}".replace("-", "−")


class GraphPanel(NamedTuple):
    """What is drawn of one graph of N nodes. Matrices are [N, N], row j for the edges into node j;
    NaN stands for a closed edge."""

    title: str
    edges: np.ndarray  # bool: those that routers weigh; no other is drawn
    arcs: np.ndarray
    cells: np.ndarray
    absent: np.ndarray  # bool [N]
    fixed_chain: bool  # whether the edges j-1 → j are fixed at 1, as in the residual wiring

    @property
    def spacing(self) -> float:
        return SPACING if len(self.edges) < LARGE_GRAPH else SMALL_SPACING

    @property
    def width(self) -> float:
        return (len(self.edges) - 1) * self.spacing + 2 * SIDE

    @property
    def above(self) -> float:
        """Height of what is above the line of nodes."""
        return ARC * self.spacing * (len(self.edges) - 1) + TITLE

    @property
    def below(self) -> float:
        """Height of what is below the line of nodes."""
        shortest = 2 if self.fixed_chain else 1
        return CELL * self.spacing * (len(self.edges) - shortest + 1) + BOTTOM


def draw_graphs(
    panels: Sequence[GraphPanel],
    arcs: Scale,
    cells: Scale,
    *,
    grey: tuple[str, str] = ("closed edge", "absent node"),
) -> Figure:
    """A picture of graphs, each as its nodes on a line, from the input to the output.

    An arc above the line is an edge; wide and dark is a large value. The cell that hangs below an
    arc's middle is the same edge, with its value written in where there is room. Pictures with
    equal scales and graphs can be compared: size and places are the same.

    Args:
        panels: the graphs.
        arcs, cells: scales of the arcs above the nodes and of the cells below. If they are the
            same, there is one colour bar.
        grey: what the edges are whose arcs have no value, and the absent nodes.
    """
    rows = _rows(panels)
    width = max(sum(panel.width for panel in row) for row in rows)
    heights = [max(p.above for p in row) + max(p.below for p in row) for row in rows]
    height = max(sum(heights), 2.6)
    scales = list(dict.fromkeys((arcs, cells)))
    size = width + BAR * len(scales), height + LEGEND
    figure = Figure(figsize=size)

    # One inch of paper is 1 in these axes.
    axes = figure.add_axes((0, LEGEND / size[1], width / size[0], height / size[1]))
    axes.set(xlim=(0, width), ylim=(-height, 0))
    axes.set_axis_off()
    top = 0.0
    for row, row_height in zip(rows, heights, strict=True):
        x, baseline = 0.0, top - max(panel.above for panel in row)
        for panel in row:
            _draw_panel(axes, panel, x, baseline, arcs, cells)
            x += panel.width
        top -= row_height
    for k, scale in enumerate(scales):
        left, bottom = (width + 0.12 + BAR * k) / size[0], 0.15 + LEGEND / size[1]
        bar = figure.add_axes((left, bottom, 0.14 / size[0], 0.7))
        place = "" if len(scales) == 1 else (" (arcs)", " (cells)")[k]
        options: dict[str, Any] = {"ticks": ALPHA_TICKS, "format": "%g"} if scale.sigmoid else {}
        colorbar = figure.colorbar(scale.colors(), cax=bar, **options)
        colorbar.set_label(scale.label + place, fontsize=8)
        bar.tick_params(labelsize=7)
    keys = _legend(panels, grey)
    figure.legend(handles=keys, loc="lower center", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def _rows(panels: Sequence[GraphPanel]) -> list[list[GraphPanel]]:
    """Panels in as few rows as the widest row allows, and those of about the same width."""
    widest = max(MAX_ROW, max(panel.width for panel in panels))
    fewest = len(_fill_rows(panels, widest))
    limits = np.linspace(widest / fewest / 2, widest, 100)
    return next(rows for x in limits if len(rows := _fill_rows(panels, x)) == fewest)


def _fill_rows(panels: Sequence[GraphPanel], widest: float) -> list[list[GraphPanel]]:
    rows: list[list[GraphPanel]] = [[]]
    for panel in panels:
        if rows[-1] and sum(p.width for p in rows[-1]) + panel.width > widest:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _draw_panel(
    axes: Axes, panel: GraphPanel, left: float, baseline: float, arcs: Scale, cells: Scale
) -> None:
    """Draw a graph whose nodes are on the line y = ``baseline``, in a strip from x = ``left``."""
    s, num_nodes = panel.spacing, len(panel.edges)
    large = num_nodes >= LARGE_GRAPH
    nodes = left + SIDE + s * np.arange(num_nodes)
    title_at = baseline + panel.above - 0.24
    axes.text(left + 0.2, title_at, panel.title, fontsize=9, va="center")

    if panel.fixed_chain:
        axes.plot(nodes[[0, -1]], [baseline] * 2, color=CHAIN, lw=1.6, zorder=2)
    to, source = np.nonzero(panel.edges)
    values = panel.arcs[to, source]
    # The largest last, on top.
    order = np.argsort(np.where(np.isnan(values), -1, arcs.strength(values)))
    to, source, values = to[order], source[order], values[order]
    span = (to - source)[:, None]
    x = (nodes[source] + nodes[to])[:, None] / 2 - np.cos(HALF_CIRCLE) * span * s / 2
    y = baseline + np.sin(HALF_CIRCLE) * np.where(span == 1, 0, span * s * ARC)
    paths = np.stack([x, y], axis=2)
    is_open = ~np.isnan(values)
    thin = 0.5 if large else 0.8
    axes.add_collection(
        LineCollection(paths[~is_open], colors=CLOSED, linewidths=thin, linestyles=(0, (3, 2)))
    )
    # Under each arc a white one, which keeps those that cross apart, and a faint one, which is seen
    # where the value is near 0 and its colour near white.
    widths = thin + (1.4 if large else 2.6) * arcs.strength(values[is_open])
    colors = arcs.colors().to_rgba(values[is_open])
    layers = np.broadcast_to(to_rgba_array(["white", FAINT, FAINT]), (len(colors), 3, 4)).copy()
    layers[:, 2] = colors
    axes.add_collection(
        LineCollection(
            list(np.repeat(paths[is_open], 3, axis=0)),
            colors=layers.reshape(-1, 4),
            linewidths=np.stack([widths + 1.2, 0 * widths + thin, widths], axis=1).ravel(),
        )
    )

    _draw_cells(axes, panel, nodes, baseline - 0.17, cells)
    for j, x_j in enumerate(nodes):
        _draw_node(axes, panel, j, x_j, baseline)


def _draw_cells(axes: Axes, panel: GraphPanel, nodes: np.ndarray, top: float, cells: Scale) -> None:
    """Draw each edge as a diamond below the middle of its arc, the shorter the higher."""
    s = panel.spacing
    to, source = np.nonzero(panel.edges)
    values = panel.cells[to, source]
    is_open = ~np.isnan(values)
    shortest = 2 if panel.fixed_chain else 1
    x = (nodes[source] + nodes[to]) / 2
    y = top - s * CELL * (to - source - shortest + 1)
    corners = np.array([[-0.5, 0], [0, CELL], [0.5, 0], [0, -CELL]]) * s
    faces = cells.colors().to_rgba(values)
    faces[~is_open] = (1, 1, 1, 1)
    diamonds = np.stack([x, y], axis=1)[:, None] + corners
    axes.add_collection(
        PolyCollection(list(diamonds), facecolors=faces, edgecolors="0.6", linewidths=0.4)
    )
    size = 0.16 * 72 * s * CELL
    axes.plot(x[~is_open], y[~is_open], "x", color=CLOSED, markersize=2 * size, mew=0.8)
    if len(panel.edges) > MAX_WRITTEN:
        return
    for k in np.flatnonzero(is_open):
        dark = np.dot(faces[k][:3], (0.299, 0.587, 0.114)) < 0.5
        text = cells.text(float(values[k]))
        color = "white" if dark else "black"
        axes.text(x[k], y[k], text, ha="center", va="center", fontsize=6.5, color=color)


def _draw_node(axes: Axes, panel: GraphPanel, j: int, x: float, y: float) -> None:
    num_nodes = len(panel.edges)
    large = num_nodes >= LARGE_GRAPH
    label = {0: "in", num_nodes - 1: "out"}.get(j, str(j))
    is_end, is_absent = label in ("in", "out"), panel.absent[j]
    axes.plot(
        x,
        y,
        marker="s" if is_end else "o",
        markersize=11.5 if large else 15,
        markerfacecolor=CHAIN if is_end else ABSENT if is_absent else "white",
        markeredgecolor=CLOSED if is_absent else CHAIN,
        mew=1,
        zorder=4,
    )
    color = "white" if is_end else CLOSED if is_absent else "black"
    size = 5.5 if large else 7
    axes.text(x, y, label, ha="center", va="center_baseline", fontsize=size, color=color, zorder=5)


def _legend(panels: Sequence[GraphPanel], grey: tuple[str, str]) -> list[Line2D]:
    def dot(marker: str, edge: str, face: str, label: str) -> Line2D:
        return Line2D([], [], ls="none", marker=marker, mec=edge, mfc=face, ms=8, label=label)

    keys = [dot("D", "0.6", "white", "cell: the edge whose arc peaks above it")]
    if any(np.isnan(panel.arcs[panel.edges]).any() for panel in panels):
        keys.append(Line2D([], [], color=CLOSED, lw=1, ls=(0, (3, 2)), label=grey[0]))
    if any(panel.absent.any() for panel in panels):
        keys.append(dot("o", CLOSED, ABSENT, grey[1]))
    if any(panel.fixed_chain for panel in panels):
        keys.append(Line2D([], [], color=CHAIN, lw=1.6, label="fixed chain, weight 1"))
    return keys
