"""The figures of the page."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dgnet_det.analysis.report.effects import Effect, varying
from dgnet_det.analysis.report.survey import Survey
from dgnet_det.utils.graph_pictures import GraphPanel, Scale, draw_graphs


def draw_mean_and_spread(survey: Survey) -> Figure:
    """The mean weight of every edge as arcs, its standard deviation in the cells. Edges that are
    closed in every image are grey."""
    closed = ~survey.is_open.any(axis=0)
    mean = np.where(closed, np.nan, survey.weight.mean(axis=0))
    std = np.where(closed, np.nan, survey.weight.std(axis=0))
    titles = [
        f"{graph.name}: {100 * np.nanmean(share):.3g} % open"
        for graph, share in zip(
            survey.graphs, survey.matrices(survey.is_open.mean(axis=0)), strict=True
        )
    ]
    residual = any(graph.fixed_chain for graph in survey.graphs)
    arcs = Scale.of_alpha()
    if residual:
        arcs = Scale.of_gamma_alpha(float(np.abs(survey.weight).max()))
    arcs = arcs._replace(label=f"mean {arcs.label}")
    largest = float(np.nanmax(std, initial=0)) or 1.0
    label, unit = "standard deviation", 1.0
    if largest < 0.01:  # there is no room for many zeros
        exponent = int(np.floor(np.log10(largest)))
        label, unit = f"{label}, in $10^{{{exponent}}}$", 10.0**exponent
    cells = Scale(label, 0, largest / unit, "Greens")
    return draw_graphs(
        _panels(survey, titles, mean, std / unit),
        arcs,
        cells,
        grey=("closed in every image", "absent in every image"),
    )


def draw_effect(survey: Survey, effect: Effect, label: str, *, signed: bool) -> Figure:
    """The size of an effect on every edge: as arcs where chance is no good explanation, in the
    cells wherever the weight differs between images."""
    shown = effect.shown()
    titles = [
        f"{graph.name}: {int(np.nansum(m))} of {graph.edges.sum()} beyond chance"
        for graph, m in zip(survey.graphs, survey.matrices(shown), strict=True)
    ]
    scale = Scale(label, -1, 1, "BrBG") if signed else Scale(label, 0, 1, "Greens")
    arcs = np.where(shown, effect.size, np.nan)
    cells = np.full(len(shown), np.nan)
    cells[varying(survey.weight)] = effect.size[varying(survey.weight)]
    return draw_graphs(
        _panels(survey, titles, arcs, cells),
        scale,
        scale,
        grey=("no more than chance gives", "absent in every image"),
    )


def _panels(
    survey: Survey, titles: Sequence[str], arcs: np.ndarray, cells: np.ndarray
) -> list[GraphPanel]:
    return [
        GraphPanel(
            title,
            graph.edges,
            arc,
            cell,
            np.all(survey.absent[graph.name], axis=0),
            graph.fixed_chain,
        )
        for title, graph, arc, cell in zip(
            titles, survey.graphs, survey.matrices(arcs), survey.matrices(cells), strict=True
        )
    ]
