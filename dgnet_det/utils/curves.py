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

METRIC = re.compile(r"(?:(?P<dataset>.+)/)?(?P<task>bbox|segm|keypoints)(?P<tta>_TTA)?/AP(50|75)?")
WIRING = re.compile(r"wiring/(?P<graph>.+)/(?P<figure>open_edges|mean_weight|absent_nodes)")
# What RouterStatistics writes, and its titles.
ROUTER_PANELS = {
    "open_edges": "share of open edges",
    "mean_weight": "mean weight of an edge",
    "absent_nodes": "share of absent nodes",
}
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
    """One panel each for the losses, the learning rate and AP, and for a DG-Net three more for the
    edges and nodes of every graph, coloured from the first stage (dark) to the last (light)."""
    panels: list[tuple[str, Mapping[str, str]]] = [
        ("loss", _names(curves, r"total_loss|.*loss_.+")),
        ("learning rate", _names(curves, r"lr")),
        ("AP, %", {name: _metric_label(name) for name in curves if METRIC.fullmatch(name)}),
    ]
    routed: dict[str, dict[str, str]] = {figure: {} for figure in ROUTER_PANELS}
    for name in curves:
        if match := WIRING.fullmatch(name):
            routed[match["figure"]][name] = match["graph"]
    panels += [(title, routed[key]) for key, title in ROUTER_PANELS.items() if routed[key]]

    last = max(1, *(iterations[-1] for iterations, _ in curves.values()))
    rows = len(panels) // 3
    figure = Figure(figsize=(15, 4.2 * rows), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(rows, 3).flat, panels, strict=True):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("iteration", fontsize=9)
        axes.set_xlim(0, 1.02 * last)
        axes.grid(alpha=0.3)
        if names:
            _draw_panel(axes, curves, names, by_depth=title in ROUTER_PANELS.values())
            if title.startswith("share"):
                axes.set_ylim(-0.05, 1.05)
            elif title != ROUTER_PANELS["mean_weight"]:
                axes.set_ylim(bottom=0)
        else:
            axes.text(
                0.5, 0.5, "nothing recorded", ha="center", va="center", transform=axes.transAxes
            )
    return figure


def _draw_panel(axes: Axes, curves: Curves, names: Mapping[str, str], *, by_depth: bool) -> None:
    depths = np.linspace(0, 0.9, len(names))
    colors = colormaps["viridis"](depths) if by_depth else colormaps["tab10"](range(10))
    for k, (name, label) in enumerate(names.items()):
        # A point alone would be no line, and evaluations are few.
        marker = "o" if len(curves[name][0]) < 20 else ""
        width = 2.2 if name == "total_loss" else 1.3
        axes.plot(
            *curves[name], marker=marker, markersize=4, lw=width, color=colors[k % len(colors)],
            label=label,
        )  # fmt: skip
    if len(names) > 1:
        axes.legend(fontsize=8, frameon=False, ncols=1 + len(names) // 9)


def _names(curves: Curves, pattern: str) -> dict[str, str]:
    found = sorted(
        (name for name in curves if re.fullmatch(pattern, name)),
        key=lambda name: (name != "total_loss", name),
    )
    return {name: name.replace("_", " ") for name in found}


def _metric_label(name: str) -> str:
    return name.removeprefix("bbox/").replace("_TTA", ", augmented")
