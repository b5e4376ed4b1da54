"""The page: one HTML file that needs no other."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from dgnet_det.analysis.report.choices import draw_frequencies
from dgnet_det.analysis.report.effects import LEVEL, Effect
from dgnet_det.analysis.report.figures import draw_effect, draw_mean_and_spread
from dgnet_det.analysis.report.survey import Survey
from dgnet_det.utils.pictures import figure_pixels

# Of each test of the survey, the effect's key in the figures and its symbol.
TESTS = {"classes": ("eta_squared", "η²"), "sizes": ("rho", "ρ")}


def render_page(
    report: dict[str, Any],
    survey: Survey,
    effects: dict[str, Effect],
    examples: Sequence[dict[str, Any]],
) -> str:
    """The HTML of a report.

    Args:
        report: what :func:`summarize` returned, with ``interventions`` (of
            :func:`intervene`, or why there are none as ``not_tested``), ``date``,
            ``config_file``, ``weights``, ``wiring``, ``images_from``, ``classes_from`` and
            ``confidence``.
        survey: what it is a summary of.
        effects: what :func:`summarize` returned beside it.
        examples: entries of ``report["images"]`` with their ``distance`` and ``picture``, an image
            [H, W, 3] RGB.
    """
    tested = [(name, *TESTS[name]) for name in effects]
    most_varied = max(report["edges"], key=lambda edge: edge["std"])
    return _render(
        "page.html",
        report=report,
        level=LEVEL,
        most_varied={**most_varied, "name": _edge_name(most_varied)},
        largest_mean=max(abs(edge["mean"]) for edge in report["edges"]),
        mean_and_spread=draw_mean_and_spread(survey),
        effects={
            name: draw_effect(survey, effects[name], label, signed=name == "sizes")
            for name, _, label in tested
        },
        examples=examples,
        tested=tested,
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
