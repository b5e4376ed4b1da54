"""A survey in figures, as JSON takes them and the page prints them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dgnet_det.analysis.report.effects import (
    Effect,
    Untestable,
    class_effect,
    size_effect,
    varying,
)
from dgnet_det.analysis.report.survey import Survey


def summarize(survey: Survey) -> tuple[dict[str, Any], dict[str, Effect]]:
    """The figures of a survey, and its effects by name: ``classes`` and ``sizes``, where the images
    allow the question."""
    labels = [image["class"] for image in survey.images]
    areas = [image["height"] * image["width"] for image in survey.images]
    tests: dict[str, Callable[[], Effect]] = {
        "classes": lambda: class_effect(survey.weight, labels),
        "sizes": lambda: size_effect(survey.weight, areas),
    }
    effects: dict[str, Effect] = {}
    findings: dict[str, dict[str, Any]] = {}
    for name, test in tests.items():
        try:
            effect = effects[name] = test()
            told_apart = int(effect.shown().sum())
            findings[name] = {"edges_told_apart": told_apart, "num_images": effect.num_images}
        except Untestable as error:
            findings[name] = {"not_tested": str(error)}
    findings["classes"]["images"] = dict(Counter(label for label in labels if label).most_common())
    macs, all_open = (
        np.array([image[key] for image in survey.images]) for key in ("macs", "all_open_macs")
    )
    open_edges = survey.is_open.mean(axis=1)
    report = {
        "num_images": len(survey.images),
        "num_edges": survey.weight.shape[1],
        "edges_that_vary": len(varying(survey.weight)),
        "open_edges": _spread(open_edges),
        "macs": _spread(macs),
        "all_open_macs": _spread(all_open),
        "share_of_all_open": _spread(macs / all_open),
        **findings,
        "edges": _edges(survey, effects),
        "images": [
            {**image, "open_edges": float(share)}
            for image, share in zip(survey.images, open_edges, strict=True)
        ],
    }
    return report, effects


def choose_examples(survey: Survey, count: int) -> list[tuple[int, float]]:
    """The places of at most ``count`` images, evenly from the one nearest to the mean edge weights
    to the one farthest from them, and their distances."""
    far = distances(survey)
    return [(k, float(far[k])) for k in evenly(far, count)]


def evenly(distances: ArrayLike, count: int) -> list[int]:
    """The places of at most ``count`` distances, evenly from the smallest to the largest."""
    ranking = np.argsort(distances, kind="stable")
    places = np.linspace(0, len(ranking) - 1, min(count, len(ranking))).round().astype(int)
    return ranking[places].tolist()


def distances(survey: Survey) -> np.ndarray:
    """How far each image's edge weights are from the mean, [n]: the root of the mean over the edges
    of the squared difference in standard deviations."""
    weight = survey.weight[:, varying(survey.weight)]
    if not weight.size:
        return np.zeros(len(weight))
    return np.sqrt((((weight - weight.mean(axis=0)) / weight.std(axis=0)) ** 2).mean(axis=1))


def _edges(survey: Survey, effects: dict[str, Effect]) -> list[dict[str, Any]]:
    edges = []
    for e, (graph, source, to) in enumerate(survey.edges()):
        edge: dict[str, Any] = {
            "graph": graph,
            "from": source,
            "to": to,
            "to_output": to == survey.absent[graph].shape[1] - 1,
            **_spread(survey.weight[:, e]),
            "open": float(survey.is_open[:, e].mean()),
        }
        for name, key in (("classes", "eta_squared"), ("sizes", "rho")):
            if name in effects:
                effect = effects[name]
                edge[name] = {key: float(effect.size[e]), "p": float(effect.p[e])}
        edges.append(edge)
    return edges


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }
