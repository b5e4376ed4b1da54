"""The page: one HTML file that needs no other, and its figures."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from dgnet_det.analysis.report.survey import Survey
from dgnet_det.utils.graph_pictures import GraphPanel, Scale, draw_branches, draw_graphs
from dgnet_det.utils.pictures import figure_pixels


def render_page(report: dict[str, Any], survey: Survey, examples: Sequence[dict[str, Any]]) -> str:
    """The HTML of a report on graphs.

    Args:
        report: the result of :func:`summarize` for ``survey``, with ``interventions`` (of
            :func:`intervene`, or the reason for none as ``not_tested``), ``date``, ``config_file``,
            ``weights``, ``wiring``, ``images_from`` and ``confidence``.
        examples: entries of ``report["images"]`` with their ``picture``, [H, W, 3] RGB.
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
    """The HTML of a report on routed stages, of a :func:`summarize_choices`; otherwise as
    :func:`render_page`."""
    shares = np.array(list(report["connections"].values()))
    most = shares == shares.max(axis=1, keepdims=True)
    frequencies = draw_branches(
        list(report["connections"]), report["branches"], shares, most, label="share of the images"
    )
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
    panels, fixed_chain = [], False
    for name, graph in survey.decisions.items():
        closed, weight = ~graph.value.numpy().any(axis=0), graph.weight.numpy()
        opened = graph.value[:, graph.learned].ne(0).double().mean().item()
        panels.append(
            GraphPanel(
                f"{name}: {_percent(opened)} open",
                graph.learned.numpy(),
                np.where(closed, np.nan, weight.mean(axis=0)),
                np.where(closed, np.nan, weight.std(axis=0)),
                graph.absent().all(dim=0).numpy(),
            )
        )
        fixed_chain |= panels[-1].fixed_chain
    arcs = Scale.of_alpha()
    if fixed_chain:
        arcs = Scale.of_gamma_alpha(float(np.abs(survey.of_edges("weight")).max()))
    arcs = arcs._replace(label=f"mean {arcs.label}")
    largest = max(float(np.nanmax(panel.cells, initial=0)) for panel in panels) or 1.0
    label, unit = "standard deviation", 1.0
    if largest < 0.01:  # there is no room for many zeros
        exponent = int(np.floor(np.log10(largest)))
        label, unit = f"{label}, in $10^{{{exponent}}}$", 10.0**exponent
    panels = [panel._replace(cells=panel.cells / unit) for panel in panels]
    cells = Scale(label, 0, largest / unit, "Greens")
    grey = ("closed in every image", "absent in every image")
    return draw_graphs(panels, arcs, cells, grey=grey)
