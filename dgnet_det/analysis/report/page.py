"""The page: one HTML file that needs no other, and its figures."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from dgnet_det.analysis.report.survey import Survey
from dgnet_det.utils.graph_pictures import GraphPanel, Scale, draw_branches, draw_graphs
from dgnet_det.utils.pictures import figure_pixels


def render_page(
    report: dict[str, Any],
    survey: Survey,
    examples: Sequence[dict[str, Any]],
) -> str:
    """The HTML of a report.

    Args:
        report: what :func:`summarize` returned, with ``interventions`` (of
            :func:`intervene`, or why there are none as ``not_tested``), ``date``,
            ``config_file``, ``weights``, ``wiring``, ``images_from`` and ``confidence``.
        survey: what it is a summary of.
        examples: entries of ``report["images"]`` with their ``distance`` and ``picture``, an image
            [H, W, 3] RGB.
    """
    most_varied = max(report["edges"], key=lambda edge: edge["std"])
    return _render(
        "page.html",
        report=report,
        most_varied={**most_varied, "name": _edge_name(most_varied)},
        largest_mean=max(abs(edge["mean"]) for edge in report["edges"]),
        mean_and_spread=draw_mean_and_spread(survey),
        examples=examples,
        edge_name=_edge_name,
    )


def render_choices(report: dict[str, Any], examples: Sequence[dict[str, Any]]) -> str:
    """The HTML of the report on a detector that routes between branches.

    Args:
        report: what :func:`survey_choices` returned, with ``interventions``, ``date``,
            ``config_file``, ``weights`` and ``images_from`` as for :func:`render_page`.
        examples: entries of ``report["images"]`` with their ``picture``, [H, W, 3] RGB.
    """
    frequencies = draw_frequencies(report)
    return _render("choices.html", report=report, frequencies=frequencies, examples=examples)


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("dgnet_det.analysis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": _number, "percent": _percent, "giga": _giga}
    return environment.get_template(template).render(picture=_picture, **values)


def _picture(picture: Figure | np.ndarray, description: str) -> Markup:
    """An ``img`` element that holds the picture itself: drawings as PNG, photographs as JPEG."""
    kind = "png" if isinstance(picture, Figure) else "jpeg"
    pixels = figure_pixels(picture) if isinstance(picture, Figure) else picture
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, optimize=True, quality=88)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return Markup('<img alt="{}" src="data:image/{};base64,{}">').format(description, kind, data)


def _edge_name(edge: dict[str, Any]) -> str:
    to = "out" if edge["to_output"] else edge["to"]
    return f"{edge['graph']}: {edge['from'] or 'in'} → {to}"


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%"


def _giga(count: float) -> str:
    return f"{count / 1e9:.3g}"


def draw_mean_and_spread(survey: Survey) -> Figure:
    """The mean weight of every edge as arcs, its standard deviation in the cells. Edges that are
    closed in every image are grey."""
    weight = survey.of_edges("weight")
    closed = ~survey.of_edges("value").any(axis=0)
    mean = np.where(closed, np.nan, weight.mean(axis=0))
    std = np.where(closed, np.nan, weight.std(axis=0))
    graphs = survey.graphs.items()
    opened = [graph.value[:, graph.learned].ne(0).double().mean().item() for _, graph in graphs]
    titles = [f"{name}: {_percent(x)} open" for (name, _), x in zip(graphs, opened, strict=True)]
    arcs = Scale.of_alpha()
    if any(not graph.learned[1, 0] for _, graph in graphs):
        arcs = Scale.of_gamma_alpha(float(np.abs(weight).max()))
    arcs = arcs._replace(label=f"mean {arcs.label}")
    largest = float(np.nanmax(std, initial=0)) or 1.0
    label, unit = "standard deviation", 1.0
    if largest < 0.01:  # there is no room for many zeros
        exponent = int(np.floor(np.log10(largest)))
        label, unit = f"{label}, in $10^{{{exponent}}}$", 10.0**exponent
    cells = Scale(label, 0, largest / unit, "Greens")
    grey = ("closed in every image", "absent in every image")
    return draw_graphs(_panels(survey, titles, mean, std / unit), arcs, cells, grey=grey)


def _panels(
    survey: Survey, titles: Sequence[str], arcs: np.ndarray, cells: np.ndarray
) -> list[GraphPanel]:
    parts = zip(
        titles, survey.graphs.values(), survey.matrices(arcs), survey.matrices(cells), strict=True
    )
    return [
        GraphPanel(
            title,
            graph.learned.numpy(),
            arc,
            cell,
            graph.absent().all(dim=0).numpy(),
            not graph.learned[1, 0],
        )
        for title, graph, arc, cell in parts
    ]


def draw_frequencies(report: Mapping[str, Any]) -> Figure:
    """How often each branch is taken; the most frequent ones are framed."""
    values = np.array(list(report["connections"].values()))
    most = values == values.max(axis=1, keepdims=True)
    names, branches = list(report["connections"]), report["branches"]
    return draw_branches(names, branches, values, most, label="share of the images")
