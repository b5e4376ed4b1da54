"""A run's curves as one picture: losses, learning rate, AP, and the routers' statistics."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The panels, and the pattern of their curves' names; a group in it is the label.
PANELS = {
    "loss": "total_loss|.*loss_.+",
    "learning rate": "lr",
    "AP, %": "(?:.+/)?(?:bbox|segm|keypoints)(?:_TTA)?/AP(?:50|75)?",
    "mean weight of an edge": "wiring/(.+)/mean_weight",
    "spread of α over images (std)": "wiring/(.+)/alpha_std",
    "share of open edges": "wiring/(.+)/open_edges",
    "share of absent nodes": "wiring/(.+)/absent_nodes",
    "share of the multiply-adds": "wiring/(?:training/)?share",
}
COLUMNS = 4
MANY = 5  # the number of graphs from which on their curves would cover each other
Curves = dict[str, tuple[list[int], list[float]]]


def read_metrics(path: Path) -> Curves:
    """Read the curves of a ``metrics.json``: iterations and values by name, NaN left out.

    The lines of a later run replace those from its first iteration on. An evaluation's own line may
    follow a later one of the training. A line that was cut off, as by a full disk, is left out.
    """
    records: list[dict[str, Any]] = []
    latest = -1
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        start, trains = record["iteration"], "lr" in record
        if start <= latest:
            records = [r for r in records if r["iteration"] < start or ("lr" in r and not trains)]
        latest = start if trains else max(start, latest)
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
    """Draw the :data:`PANELS` that there are curves for. Routers' curves that are all constant are
    left out."""
    panels = {}
    for title, pattern in PANELS.items():
        found = filter(None, (re.fullmatch(pattern, name) for name in sorted(curves)))
        labels = {match[0]: match[match.lastindex or 0] for match in found}
        if any(not name.startswith("wiring/") or _changes(curves[name][1]) for name in labels):
            panels[title] = labels
    rows, columns = -(-len(panels) // COLUMNS), min(COLUMNS, len(panels))
    last = max(1, *(iterations[-1] for iterations, _ in curves.values()))
    figure = Figure(figsize=(5 * columns, 4.2 * rows), layout="constrained")
    for k, (title, labels) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, k)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("iteration", fontsize=9)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.grid(alpha=0.3)
        of_graphs = all(name.startswith("wiring/") for name in labels)
        if of_graphs and len(labels) >= MANY:
            labels = _draw_range(axes, curves, labels)
        for name, label in labels.items():
            # A point alone would be no line, and evaluations are few.
            marker = "o" if len(curves[name][0]) < 20 else ""
            width = 2.2 if name == "total_loss" else 1.3
            axes.plot(*curves[name], marker=marker, markersize=4, lw=width, label=label)
        if len(labels) > 1:
            axes.legend(
                fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14)
            )
        # The frame would cut a point at 0 in half.
        low, high = axes.get_ylim()
        axes.set_ylim(bottom=min(low, -0.03 * high))
    return figure


def _changes(values: list[float]) -> bool:
    return len(values) == 1 or len(set(values)) > 1


def _draw_range(axes: Axes, curves: Curves, labels: dict[str, str]) -> dict[str, str]:
    """Draw the mean and the range of all graphs' curves, which have the same iterations. Returns
    those that end lowest and highest, to be drawn beside them."""
    iterations = curves[next(iter(labels))][0]
    values = np.array([curves[name][1] for name in labels])
    axes.fill_between(iterations, values.min(axis=0), values.max(axis=0), color="0.85", label="all")
    axes.plot(iterations, values.mean(axis=0), color="0.3", lw=2.2, label="mean")
    names, ends = list(labels), values[:, -1]
    return {names[k]: labels[names[k]] for k in (ends.argmin(), ends.argmax())}
