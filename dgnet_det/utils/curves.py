"""A run's curves as one picture: losses, learning rate, AP, and what the routers decided."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The figures of a DG-Net's graphs, "wiring/res2.0/open_edges", and their titles.
GRAPH_PANELS = {
    "mean_weight": "mean weight of an edge",
    "alpha_std": "spread of α over images (std)",
    "open_edges": "share of open edges",
    "absent_nodes": "share of absent nodes",
}
GRAPH = re.compile(rf"wiring/(?P<graph>.+)/(?P<figure>{'|'.join(GRAPH_PANELS)})")
Curves = dict[str, tuple[list[int], list[float]]]


def read_metrics(path: Path) -> Curves:
    """The curves of a ``metrics.json``: iterations and values by name, NaN left out.

    Where a later run went on from an earlier one, or began anew, its lines take the place of those
    from the iteration on where it started.
    """
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        while records and records[-1]["iteration"] >= record["iteration"]:
            records.pop()
        records.append(record)
    curves: Curves = {}
    for record in records:
        iteration = record.pop("iteration")
        for name, value in record.items():
            if not np.isnan(value):
                iterations, values = curves.setdefault(name, ([], []))
                iterations.append(iteration)
                values.append(value)
    return curves


def draw_curves(curves: Curves) -> Figure:
    """One panel each for the losses, the learning rate and AP, and for a DG-Net a second row on the
    edges and nodes of its graphs: their mean and range, and every graph as a thin line from the
    first (dark) to the last (light)."""
    lines: list[tuple[str, dict[str, str]]] = [
        ("loss", _names(curves, r"total_loss|.*loss_.+")),
        ("learning rate", _names(curves, r"lr")),
        ("AP, %", _names(curves, r"(.+/)?(bbox|segm|keypoints)(_TTA)?/AP(50|75)?")),
    ]
    graphs: dict[str, dict[str, str]] = {figure: {} for figure in GRAPH_PANELS}
    for name in curves:
        if match := GRAPH.fullmatch(name):
            graphs[match["figure"]][name] = match["graph"]
    bands = [(title, graphs[key]) for key, title in GRAPH_PANELS.items() if graphs[key]]

    last = max(1, *(iterations[-1] for iterations, _ in curves.values()))
    figure = Figure(figsize=(15, 8.4 if bands else 4.2), layout="constrained")
    rows = figure.subfigures(2 if bands else 1, 1, squeeze=False)[:, 0]
    for row, panels, draw in zip(rows, (lines, bands), (_draw_lines, _draw_bands), strict=False):
        places = row.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, names) in zip(places, panels, strict=True):
            axes.set_title(title, fontsize=11)
            axes.set_xlabel("iteration", fontsize=9)
            axes.set_xlim(-0.02 * last, 1.02 * last)
            axes.grid(alpha=0.3)
            draw(axes, curves, names)
            if title.startswith("share"):
                axes.set_ylim(-0.05, 1.05)
    return figure


def _draw_lines(axes: Axes, curves: Curves, names: Mapping[str, str]) -> None:
    if not names:
        axes.text(0.5, 0.5, "nothing recorded", ha="center", transform=axes.transAxes)
        return
    colors = colormaps["tab10"](range(10))
    for k, (name, label) in enumerate(names.items()):
        # A point alone would be no line, and evaluations are few.
        marker = "o" if len(curves[name][0]) < 20 else ""
        width = 2.2 if name == "total_loss" else 1.3
        color = colors[k % len(colors)]
        axes.plot(*curves[name], marker=marker, markersize=4, lw=width, color=color, label=label)
    if len(names) > 1:
        axes.legend(fontsize=8, frameon=False, ncols=1 + len(names) // 9)
    # Not at 0: the frame would cut a point there in half.
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])


def _draw_bands(axes: Axes, curves: Curves, names: Mapping[str, str]) -> None:
    """Draw curves that often lie on each other."""
    iterations = curves[next(iter(names))][0]
    values = np.array([np.interp(iterations, *curves[name]) for name in names])
    axes.fill_between(
        iterations, values.min(axis=0), values.max(axis=0), color="0.88", label="range"
    )
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for label, line, color in zip(names.values(), values, colors, strict=True):
        axes.plot(iterations, line, lw=0.9, color=color, label=label)
    axes.plot(iterations, values.mean(axis=0), lw=2.2, ls="--", color="black", label="mean")
    axes.legend(fontsize=8, frameon=False, ncols=1 + len(names) // 6)


def _names(curves: Curves, pattern: str) -> dict[str, str]:
    """The curves of one panel, and their labels."""
    found = (name for name in curves if re.fullmatch(pattern, name))
    return {name: name for name in sorted(found, key=lambda name: (name != "total_loss", name))}
