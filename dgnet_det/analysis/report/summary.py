"""A survey in figures, as JSON takes them and the page prints them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from dgnet_det.analysis.report.effects import (
    LEVEL,
    MIN_PER_CLASS,
    PERMUTATIONS,
    ROUNDING,
    Effect,
    Untestable,
    class_effect,
    size_effect,
)
from dgnet_det.analysis.report.survey import Survey

# What the figures are, for the reader of the JSON file.
FIELDS = {
    "macs": "multiply-adds that the backbone (stem and stages, without FPN) ran on the image as"
    " resized and padded: closed edges and absent nodes left out",
    "all_open_macs": "the same if no edge were closed",
    "share_of_all_open": "macs / all_open_macs",
    "weight": "the factor of an edge in the gathered sum, 0 where it is closed: α, or γ·α in the"
    " residual wiring, whose fixed chain is left out",
    "std": "over the images, with n in the denominator",
    "open": "share of the images in which the edge is open",
    "present": "share of the images in which the node runs",
    "class": "the class that covers the largest area of the image",
    "eta_squared": "share of the variance of an edge's weight that lies between classes",
    "rho": "Spearman's correlation of an edge's weight and the image's area in its file",
    "p": f"of an effect so large in any edge by chance alone: from {PERMUTATIONS} permutations of"
    " the images, by the strongest edge of each",
    "chance": f"the effect that the strongest edge reaches in {LEVEL:.0%} of the permutations",
}


def summarize(survey: Survey) -> tuple[dict[str, Any], dict[str, Effect]]:
    """The figures of a survey, and its effects by name: ``classes`` and ``sizes``, where the images
    allow the question."""
    labels = [image.label for image in survey.images]
    areas = [image.size[0] * image.size[1] for image in survey.images]
    tests: dict[str, Callable[[], Effect]] = {
        "classes": lambda: class_effect(survey.weight, labels),
        "sizes": lambda: size_effect(survey.weight, areas),
    }
    effects: dict[str, Effect] = {}
    findings: dict[str, dict[str, Any]] = {}
    for name, test in tests.items():
        try:
            effect = effects[name] = test()
            findings[name] = {
                "edges_told_apart": int(effect.shown().sum()),
                "num_images": effect.num_images,
                "permutations": PERMUTATIONS,
                "chance": effect.chance,
            }
        except Untestable as error:
            findings[name] = {"not_tested": str(error)}
    findings["classes"]["images"] = dict(Counter(label for label in labels if label).most_common())
    macs = np.array([image.macs for image in survey.images])
    all_open = np.array([image.all_open_macs for image in survey.images])
    report = {
        "fields": FIELDS,
        "num_images": len(survey.images),
        "num_edges": survey.weight.shape[1],
        "edges_that_vary": int((np.ptp(survey.weight, axis=0) > ROUNDING).sum()),
        "open_edges": _spread(survey.is_open.mean(axis=1)),
        "macs": _spread(macs),
        "all_open_macs": _spread(all_open),
        "share_of_all_open": _spread(macs / all_open),
        **findings,
        "edges": _edges(survey, effects, labels),
        "nodes": [
            {"graph": graph, "node": j, "present": 1 - float(share)}
            for graph, absent in survey.absent.items()
            for j, share in enumerate(absent.mean(axis=0))
            if 0 < j < absent.shape[1] - 1
        ],
        "images": [
            {
                "file": image.file,
                "height": image.size[0],
                "width": image.size[1],
                "class": image.label,
                "detections": image.num_detections,
                "macs": image.macs,
                "all_open_macs": image.all_open_macs,
                "open_edges": float(share),
            }
            for image, share in zip(survey.images, survey.is_open.mean(axis=1), strict=True)
        ],
    }
    return report, effects


def distances(survey: Survey) -> np.ndarray:
    """How far each image's wiring is from the mean, [n]: the root of the mean over the edges of its
    squared difference in standard deviations."""
    std = survey.weight.std(axis=0)
    varies = np.ptp(survey.weight, axis=0) > ROUNDING
    difference = (survey.weight - survey.weight.mean(axis=0))[:, varies] / std[varies]
    return np.sqrt((difference**2).sum(axis=1) / max(varies.sum(), 1))


def _edges(survey: Survey, effects: dict[str, Effect], labels: list[str]) -> list[dict[str, Any]]:
    weight = survey.weight
    means: dict[str, np.ndarray] = {}
    if "classes" in effects:
        ofs = np.array(labels)
        means = {
            c: weight[ofs == c].mean(axis=0)
            for c, k in Counter(labels).items()
            if c and k >= MIN_PER_CLASS
        }
    edges = []
    for e, (graph, source, to) in enumerate(survey.edges()):
        edge: dict[str, Any] = {
            "graph": graph,
            "from": source,
            "to": to,
            "to_output": to == survey.absent[graph].shape[1] - 1,
            "mean": float(weight[:, e].mean()),
            "std": float(weight[:, e].std()),
            "min": float(weight[:, e].min()),
            "max": float(weight[:, e].max()),
            "open": float(survey.is_open[:, e].mean()),
        }
        for name, key in (("classes", "eta_squared"), ("sizes", "rho")):
            if name in effects:
                effect = effects[name]
                edge[name] = {key: float(effect.size[e]), "p": float(effect.p[e])}
        if means:
            by_mean = sorted(means, key=lambda name: means[name][e])
            edge["classes"]["lowest"] = _class_mean(by_mean[0], means, e)
            edge["classes"]["highest"] = _class_mean(by_mean[-1], means, e)
        edges.append(edge)
    return edges


def _class_mean(name: str, means: dict[str, np.ndarray], edge: int) -> dict[str, Any]:
    return {"class": name, "mean": float(means[name][edge])}


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }
