"""Pictures of graphs as the paper draws them, nodes on a line and edges as arcs above it; and of
the branches that connections choose from, as a table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import FuncNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

INCH = 2.4  # spacings of neighbouring nodes, the unit of the next lines
ARC, CELL = 0.3, 0.36  # height of an arc for each node that it spans, and half that of a cell
TITLE, GAP = 1.2, 1.4  # height of a title, and width between the last node and the next graph
ROW = 16.0  # width of a row, unless one graph needs more
# Inches: width of a colour bar, height and width of the legend.
BAR, LEGEND, LEGEND_WIDTH = 1.2, 0.35, 8.0
# Inches of the table of branches: side of a cell; margins on the left with the scale, and below.
SQUARE, MARGINS = 0.42, (2.3, 1.0)
MAX_WRITTEN = 8  # nodes of a graph whose values are written into its cells

CLOSED, ABSENT, CHAIN, FAINT = "0.72", "0.94", "0.2", "0.88"
HALF_CIRCLE = np.linspace(0, np.pi, 41)
ALPHA_TICKS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)


def _logit(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # 0 and 1 are ∞, and clipped
        return np.log(p) - np.log1p(-p)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Scale(NamedTuple):
    """The meaning, range and colours of the values in a picture."""

    label: str
    low: float
    high: float
    colormap: str
    sigmoid: bool = False  # whether colours are evenly spaced in the logit of a value

    @classmethod
    def of_alpha(cls) -> "Scale":
        """A scale of α, from 0 to 1. Colours are even in the logit, which tells weights near 1
        apart."""
        return cls("edge weight α", 0.01, 0.99, "YlGnBu", sigmoid=True)

    @classmethod
    def of_gamma_alpha(cls, limit: float) -> "Scale":
        """A scale of γ·α up to ±``limit``."""
        # Before training all γ are 0.
        return cls("edge weight γ·α", -(limit or 1.0), limit or 1.0, "PuOr")

    def colors(self) -> ScalarMappable:
        """The mapping from values to colours."""
        norm = Normalize(self.low, self.high)
        if self.sigmoid:
            norm = FuncNorm((_logit, _sigmoid), self.low, self.high, clip=True)
        return ScalarMappable(norm, colormaps[self.colormap])

    def strength(self, values: np.ndarray) -> np.ndarray:
        """How large values are, from 0 to 1."""
        return np.clip(np.abs(values) / max(abs(self.low), abs(self.high)), 0, 1)


class GraphPanel(NamedTuple):
    """The picture of one graph of N nodes. Matrices are [N, N], row j for the edges into node j;
    NaN stands for a closed edge."""

    title: str
    edges: np.ndarray  # bool: those that routers weigh; no other is drawn
    arcs: np.ndarray
    cells: np.ndarray
    absent: np.ndarray  # bool [N]

    @property
    def fixed_chain(self) -> bool:
        """Whether the edges j-1 → j are fixed at 1, as in the residual wiring."""
        return not self.edges[1, 0]

    @property
    def width(self) -> float:
        """The width that the graph takes in its row."""
        return len(self.edges) - 1 + GAP


def draw_graphs(
    panels: Sequence[GraphPanel],
    arcs: Scale,
    cells: Scale,
    *,
    grey: tuple[str, str] = ("closed edge", "absent node"),
) -> Figure:
    """Draw graphs, each as its nodes on a line, from the input to the output.

    An arc above the line is an edge; wide and dark is a large value. The cell below the arc's
    middle is the same edge, with its value written in where there is room. Pictures of the same
    graphs have the same layout.

    Args:
        panels: the graphs.
        arcs, cells: the scales of arcs and cells, which share a colour bar if they are equal.
        grey: the legend's names for edges without a value, and for absent nodes.
    """
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    axes.set_axis_off()
    top = widest = 0.0
    for row in _rows(panels):
        largest, left = max(len(panel.edges) for panel in row), 0.0
        line = top - TITLE - ARC * largest
        for panel in row:
            _draw_panel(axes, panel, left, line, arcs, cells)
            left += panel.width
        widest, top = max(widest, left), line - CELL * (largest + 2)
    axes.set(xlim=(-GAP / 2, widest - GAP / 2), ylim=(top, 0))
    scales = list(dict.fromkeys((arcs, cells)))
    width = max(LEGEND_WIDTH, widest / INCH + BAR * len(scales))
    figure.set_size_inches(width, max(2.6, -top / INCH) + LEGEND)
    for scale, place in zip(scales, ("(arcs)", "(cells)"), strict=False):
        options: dict[str, Any] = {"ticks": ALPHA_TICKS, "format": "%g"} if scale.sigmoid else {}
        bar = figure.colorbar(scale.colors(), ax=axes, shrink=0.8, aspect=30, pad=0.02, **options)
        bar.set_label(scale.label if len(scales) == 1 else f"{scale.label} {place}", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    keys = _legend(grey, fixed_chain=any(panel.fixed_chain for panel in panels))
    figure.legend(
        handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8
    )
    return figure


def _rows(panels: Sequence[GraphPanel]) -> list[list[GraphPanel]]:
    rows: list[list[GraphPanel]] = [[]]
    limit = max(ROW, *(panel.width for panel in panels))
    for panel in panels:
        if rows[-1] and sum(p.width for p in rows[-1]) + panel.width > limit:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _draw_panel(
    axes: Axes, panel: GraphPanel, left: float, line: float, arcs: Scale, cells: Scale
) -> None:
    """Draw a graph whose nodes are at x = ``left``, ``left`` + 1, … on the line y = ``line``."""
    num_nodes = len(panel.edges)
    axes.text(left - GAP / 4, line + ARC * num_nodes + 0.4, panel.title, fontsize=9)
    if panel.fixed_chain:
        axes.plot((left, left + num_nodes - 1), (line, line), color=CHAIN, lw=1.6, zorder=2)
    to, source = np.nonzero(panel.edges)
    # The largest last, on top.
    order = np.argsort(np.nan_to_num(arcs.strength(panel.arcs[to, source]), nan=-1))
    to, source = to[order], source[order]
    span, middle = (to - source)[:, None], left + (source + to)[:, None] / 2
    x = middle - np.cos(HALF_CIRCLE) * span / 2
    y = line + np.sin(HALF_CIRCLE) * np.where(span == 1, 0, span * ARC)
    paths, values = np.stack([x, y], axis=2), panel.arcs[to, source]
    closed = np.isnan(values)
    axes.add_collection(
        LineCollection(paths[closed], colors=CLOSED, linewidths=0.6, linestyles=(0, (3, 2)))
    )
    axes.add_collection(
        LineCollection(
            paths[~closed],
            colors=arcs.colors().to_rgba(values[~closed]),
            linewidths=0.6 + 2 * arcs.strength(values[~closed]),
            # A value near 0 has a colour near white.
            path_effects=[withStroke(linewidth=1, foreground=FAINT)],
        )
    )
    shortest = 2 if panel.fixed_chain else 1
    centers = np.stack([middle[:, 0], line - 0.4 - CELL * (span[:, 0] - shortest + 1)], axis=1)
    _draw_cells(axes, centers, panel.cells[to, source], cells, written=num_nodes <= MAX_WRITTEN)
    for j in range(num_nodes):
        _draw_node(axes, panel, j, left + j, line)


def _draw_cells(
    axes: Axes, centers: np.ndarray, values: np.ndarray, scale: Scale, *, written: bool
) -> None:
    """Draw each edge as a diamond, white where it is closed."""
    corners = np.array([[-0.5, 0], [0, CELL], [0.5, 0], [0, -CELL]])
    faces = scale.colors().to_rgba(values)
    faces[np.isnan(values)] = 1
    diamonds = list(centers[:, None] + corners)
    axes.add_collection(
        PolyCollection(diamonds, facecolors=faces, edgecolors="0.6", linewidths=0.4)
    )
    for (x, y), face, value in zip(centers, faces, values, strict=True):
        if written and not np.isnan(value):
            color = "white" if np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.5 else "black"
            text = f"{value:.2f}".replace("-", "−")
            axes.text(x, y, text, ha="center", va="center", fontsize=5, color=color)


def _draw_node(axes: Axes, panel: GraphPanel, j: int, x: float, y: float) -> None:
    label = {0: "in", len(panel.edges) - 1: "out"}.get(j, str(j))
    marker, face, edge, ink = "o", "white", CHAIN, "black"
    if not label.isdigit():
        marker, face, ink = "s", CHAIN, "white"
    elif panel.absent[j]:
        face, edge, ink = ABSENT, CLOSED, CLOSED
    axes.plot(x, y, marker, markersize=12, mfc=face, mec=edge, mew=1, zorder=4)
    axes.text(x, y, label, ha="center", va="center_baseline", fontsize=6, color=ink, zorder=5)


def _legend(grey: tuple[str, str], *, fixed_chain: bool) -> list[Line2D]:
    dot: dict[str, Any] = {"ls": "none", "ms": 8}
    cell = "cell: the edge whose arc peaks above it"
    keys = [
        Line2D([], [], marker="D", mec="0.6", mfc="white", label=cell, **dot),
        Line2D([], [], color=CLOSED, lw=1, ls=(0, (3, 2)), label=grey[0]),
        Line2D([], [], marker="o", mec=CLOSED, mfc=ABSENT, label=grey[1], **dot),
    ]
    if fixed_chain:
        keys.append(Line2D([], [], color=CHAIN, lw=1.6, label="fixed chain, weight 1"))
    return keys


def draw_branches(
    connections: Sequence[str],
    branches: Sequence[str],
    values: np.ndarray,
    taken: np.ndarray,
    *,
    label: str,
) -> Figure:
    """Draw a table with a column for each of C connections and a row for each of K branches.
    ``label`` names the ``values`` from 0 to 1, [C, K], that become colours; NaN where there is no
    such branch. Branches that are ``taken``, bool [C, K], are framed."""
    size = MARGINS[0] + SQUARE * len(connections), MARGINS[1] + SQUARE * len(branches)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(values.T, vmin=0, vmax=1, cmap="YlGnBu", aspect="equal")
    axes.set_xticks(range(len(connections)), connections, rotation=90, fontsize=7)
    axes.set_yticks(range(len(branches)), branches, fontsize=8)
    axes.tick_params(length=0)
    for column, row in np.argwhere(taken):
        axes.add_patch(
            Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, edgecolor="C3", lw=2)
        )
    figure.colorbar(picture, ax=axes, label=label)
    return figure
