"""A run's curves as one picture: losses, learning rate, AP, and what the routers decided."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The panels, and the names of their curves; a group is the label.
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
MANY = 5  # graphs, whose curves would cover each other
Curves = dict[str, tuple[list[int], list[float]]]


def read_metrics(path: Path) -> Curves:
    """The curves of a ``metrics.json``: iterations and values by name, NaN left out.

    Where a later run went on from an earlier one, or began anew, its lines take the place of those
    from the iteration on where it started. An evaluation's own line comes after a later one of the
    training. A line that was cut off, as by a full disk, is left out.
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
    """One panel each for the losses, the learning rate, AP, and what the routers of a DG-Net
    decide, as far as there are such curves. What the routers never change is left out."""
    panels = {title: _labels(curves, pattern) for title, pattern in PANELS.items()}
    panels = {title: labels for title, labels in panels.items() if _tells(curves, labels)}
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
        # Not at 0: the frame would cut a point there in half.
        low, high = axes.get_ylim()
        axes.set_ylim(bottom=min(low, -0.03 * high))
    return figure


def _draw_range(axes: Axes, curves: Curves, labels: dict[str, str]) -> dict[str, str]:
    """Draw the mean and the range of all graphs' curves, which have the same iterations.

    Returns:
        Those that end lowest and highest, to be drawn beside them.
    """
    iterations = curves[next(iter(labels))][0]
    values = np.array([curves[name][1] for name in labels])
    axes.fill_between(iterations, values.min(axis=0), values.max(axis=0), color="0.85", label="all")
    axes.plot(iterations, values.mean(axis=0), color="0.3", lw=2.2, label="mean")
    names, ends = list(labels), values[:, -1]
    return {names[k]: labels[names[k]] for k in (ends.argmin(), ends.argmax())}


def _tells(curves: Curves, labels: dict[str, str]) -> bool:
    """Whether a panel has curves and, if they are the routers', one that is not constant."""
    of_routers = all(name.startswith("wiring/") for name in labels)
    values = [curves[name][1] for name in labels]
    return bool(labels) and not (
        of_routers and all(len(v) > 1 and len(set(v)) == 1 for v in values)
    )


def _labels(curves: Curves, pattern: str) -> dict[str, str]:
    """The curves of one panel by name, and their labels."""
    found = filter(None, (re.fullmatch(pattern, name) for name in sorted(curves)))
    return {match[0]: match[match.lastindex or 0] for match in found}
