"""Branches that connections choose from, as a table in colours."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

CELL = 0.42  # inches
MARGINS = 2.3, 1.0  # of the labels on the left and of the scale, and below


def draw_branches(
    connections: Sequence[str],
    branches: Sequence[str],
    values: np.ndarray,
    taken: np.ndarray,
    *,
    label: str,
) -> Figure:
    """A column for each of C connections, a row for each of K branches.

    Args:
        connections: names of the columns.
        branches: names of the rows.
        values: from 0 to 1, the colours, [C, K]; NaN where there is no such branch.
        taken: bool, [C, K]: framed.
        label: what ``values`` are.
    """
    size = MARGINS[0] + CELL * len(connections), MARGINS[1] + CELL * len(branches)
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
