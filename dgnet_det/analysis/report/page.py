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

from dgnet_det.analysis.report.effects import LEVEL, Effect
from dgnet_det.analysis.report.figures import draw_effect, draw_histograms, draw_mean_and_spread
from dgnet_det.analysis.report.survey import Survey
from dgnet_det.utils.pictures import figure_pixels

MAX_ROWS = 10  # of the table of the strongest edges
TESTS = {
    "classes": {
        "name": "classes",
        "key": "eta_squared",
        "label": "η²",
        "question": "An image counts as of the class that covers its largest area.",
        "reading": "η² is the share of a weight's variance that lies between classes: 0 where all"
        " classes have the same mean weight, 1 where the class alone decides.",
        "caveat": "Images of different classes may also differ in other ways, such as size.",
    },
    "sizes": {
        "name": "image sizes",
        "key": "rho",
        "label": "ρ",
        "question": "An image's size is its area in the file, before resizing for the network.",
        "reading": "ρ is Spearman's rank correlation of a weight and the image's area: above 0"
        " where larger images have larger weights, below 0 where they have smaller ones.",
        "caveat": "Large and small images may also differ in what they show.",
    },
}


def render_page(
    report: dict[str, Any],
    survey: Survey,
    effects: dict[str, Effect],
    examples: Sequence[dict[str, Any]],
) -> str:
    """The HTML of a report.

    Args:
        report: what :func:`summarize` returned, with ``date``, ``config_file``, ``weights``,
            ``wiring``, ``images_from``, ``classes_from`` and ``confidence``.
        survey: what it is a summary of.
        effects: what :func:`summarize` returned beside it.
        examples: entries of ``report["images"]`` with their ``distance`` and ``picture``, an image
            [H, W, 3] RGB.
    """
    environment = Environment(
        loader=PackageLoader("dgnet_det.analysis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    edges, tested = report["edges"], [name for name in TESTS if name in effects]
    return environment.get_template("page.html").render(
        report=report,
        level=LEVEL,
        picture=_picture,
        number=_number,
        percent=_percent,
        giga=_giga,
        variation=_variation(report),
        figures={"mean": draw_mean_and_spread(survey), "macs": _macs_figure(report)},
        macs_sentence=_macs_sentence(report),
        tests=[_test(name, report, survey, effects) for name in TESTS],
        examples=examples,
        examples_sentence=_examples_sentence(report, len(examples)),
        edges_header=["edge", "mean", "std", "min", "max", "open"]
        + [cell for name in tested for cell in (TESTS[name]["label"], "p")],
        edges=[
            [
                _edge_name(edge),
                *(_number(edge[key]) for key in ("mean", "std", "min", "max")),
                _percent(edge["open"]),
                *(_number(edge[name][key]) for name in tested for key in (TESTS[name]["key"], "p")),
            ]
            for edge in edges
        ],
    )


def _test(
    name: str, report: dict[str, Any], survey: Survey, effects: dict[str, Effect]
) -> dict[str, Any]:
    test: dict[str, Any] = {**TESTS[name], "finding": {"not_tested": "", **report[name]}}
    if name not in effects:
        return test
    key, label = test["key"], test["label"]
    test["figure"] = draw_effect(survey, effects[name], label, signed=name == "sizes")
    shown = [edge for edge in report["edges"] if edge[name]["p"] <= LEVEL]
    shown.sort(key=lambda edge: -abs(edge[name][key]))
    test["header"] = ["edge", label, "p", "mean weight"]
    if name == "classes":
        test["header"] += ["smallest for", "largest for"]
    test["rows"] = []
    for edge in shown[:MAX_ROWS]:
        row = [_edge_name(edge), _number(edge[name][key]), _number(edge[name]["p"])]
        row.append(_number(edge["mean"]))
        if name == "classes":
            extremes = (edge[name]["lowest"], edge[name]["highest"])
            row += [f"{e['class']} ({_number(e['mean'])})" for e in extremes]
        test["rows"].append(row)
    return test


def _macs_figure(report: dict[str, Any]) -> Figure | None:
    values = []
    for key, label, scale in (
        ("macs", "multiply-adds of the backbone, G", 1e9),
        ("share", "share of those with all edges open, %", 0.01),
    ):
        numbers = np.array([_macs_of(image, key) / scale for image in report["images"]])
        if np.ptp(numbers) > 0:
            values.append((label, numbers))
    return draw_histograms(values) if values else None


def _macs_of(image: dict[str, Any], key: str) -> float:
    return image["macs"] if key == "macs" else image["macs"] / image["all_open_macs"]


def _macs_sentence(report: dict[str, Any]) -> str:
    macs, share = report["macs"], report["share_of_all_open"]
    if share["min"] == 1:
        return (
            f"No edge was closed in any image, so nothing was saved: {_giga(macs['mean'])} G on"
            " average."
        )
    return (
        f"On average {_giga(macs['mean'])} ± {_giga(macs['std'])} G,"
        f" {_percent(share['mean'])} of those with all edges open; the most frugal image took"
        f" {_percent(share['min'])}, the costliest {_percent(share['max'])}."
    )


def _variation(report: dict[str, Any]) -> str:
    edge = max(report["edges"], key=lambda edge: edge["std"])
    largest = max(abs(edge["mean"]) for edge in report["edges"])
    if not report["edges_that_vary"]:
        return "All images are wired alike: no weight depends on the image."
    relation = edge["std"] / largest if largest else float("nan")
    sentence = (
        f"The edge whose weight differs most between images is {_edge_name(edge)}: mean"
        f" {_number(edge['mean'])}, standard deviation {_number(edge['std'])}."
    )
    if relation < 0.05:
        sentence += (
            f" That is little: {_percent(relation)} of the largest mean weight. The images are"
            " wired nearly alike."
        )
    return sentence


def _examples_sentence(report: dict[str, Any], count: int) -> str:
    if count == 1:
        return "The image whose wiring is closest to the mean."
    if not report["edges_that_vary"]:
        return f"{count} images."
    return (
        f"{count} images, from the one whose wiring is closest to the mean to the one that is wired"
        " most differently. Colours are on one scale."
    )


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
