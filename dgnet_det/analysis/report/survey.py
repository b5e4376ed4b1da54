"""The decisions of a detector's routers on every image of a dataset, as figures for JSON and the
page."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn
from tqdm import tqdm

from dgnet_det.analysis.counts import ImageCounter
from dgnet_det.data import CheckedDatasetMapper
from dgnet_det.graph.decisions import Decisions
from dgnet_det.modeling.backbone.drnet import branch_name
from dgnet_det.modeling.observation import record_decisions

ROUNDING = 1e-6  # a weight that moves by less over the images is constant


class Survey(NamedTuple):
    """The results and decisions on n images."""

    # Of each: "file", "height" and "width" of the file, "detections" (their number), "macs" that
    # the backbone ran, and "all_open_macs", with all edges open or the dearest branches.
    images: list[dict[str, Any]]
    decisions: dict[str, Decisions]  # by stage, of all images, float64 on the CPU

    def of_edges(self, part: str) -> np.ndarray:
        """The ``weight`` or ``value`` (α) of the E edges that routers weigh, [n, E], graph by graph
        and row by row of its matrix; 0 where an edge is closed."""
        parts = [getattr(graph, part)[:, graph.learned] for graph in self.decisions.values()]
        return torch.cat(parts, dim=1).numpy()


@torch.no_grad()
def survey_images(
    model: nn.Module, cfg: CfgNode, images: Sequence[Mapping[str, Any]], *, confidence: float
) -> Survey:
    """Run a detector on images, with a progress bar.

    Args:
        model: with graphs or routed stages, in evaluation mode.
        cfg: its config.
        images: at least one, in Detectron2's dataset format, or with a ``file_name`` alone.
        confidence: what the score of a detection must be above.
    """
    read, count = CheckedDatasetMapper(cfg, is_train=False), ImageCounter(model)
    seen, recorded = [], []
    with record_decisions(model) as decisions:
        for image in tqdm(images, desc="images", unit="image"):
            inputs = read(image)
            found = model([inputs])[0]["instances"]
            recorded.append(dict(decisions))
            counts = count(inputs["image"])
            seen.append(
                {
                    "file": str(image["file_name"]),
                    "height": inputs["height"],
                    "width": inputs["width"],
                    "detections": int((found.scores > confidence).sum()),
                    "macs": counts.ran.macs,
                    "all_open_macs": counts.all_open.macs,
                }
            )

    def of_all(name: str) -> Decisions:
        gate, value, weight = (
            torch.cat([getattr(row[name], part) for row in recorded]).double().cpu()
            for part in ("gate", "value", "weight")
        )
        learned = decisions[name].learned.cpu()
        return decisions[name]._replace(gate=gate, value=value, weight=weight, learned=learned)

    return Survey(seen, {name: of_all(name) for name in decisions})


def varying(weight: np.ndarray) -> np.ndarray:
    """The indices of the edges whose weight, [n, E], differs between images."""
    return np.flatnonzero(np.ptp(weight, axis=0) > ROUNDING)


def summarize(survey: Survey) -> dict[str, Any]:
    """The figures of a survey of graphs: every edge's weight, and what images cost."""
    weight, is_open = survey.of_edges("weight"), survey.of_edges("value") != 0
    macs, all_open = (
        np.array([image[key] for image in survey.images]) for key in ("macs", "all_open_macs")
    )
    edges: list[dict[str, Any]] = []
    places = [
        (name, int(i), int(j), len(graph.learned) - 1)
        for name, graph in survey.decisions.items()
        for j, i in graph.learned.nonzero()
    ]
    for e, (name, i, j, output) in enumerate(places):
        edges.append({"graph": name, "from": i, "to": j, "to_output": j == output})
        edges[-1] |= {**_spread(weight[:, e]), "open": float(is_open[:, e].mean())}
    of_images = {"open_edges": is_open.mean(axis=1), "distance": distances(weight)}
    return {
        "num_images": len(survey.images),
        "num_edges": len(edges),
        "edges_that_vary": len(varying(weight)),
        "open_edges": _spread(of_images["open_edges"]),
        "macs": _spread(macs),
        "all_open_macs": _spread(all_open),
        "share_of_all_open": _spread(macs / all_open),
        "edges": edges,
        "images": [
            {**image, **{key: float(values[k]) for key, values in of_images.items()}}
            for k, image in enumerate(survey.images)
        ],
    }


def distances(weight: np.ndarray) -> np.ndarray:
    """The distance of each image's edge weights, [n, E], from the mean image, [n]: the root mean
    square over the edges of the difference in standard deviations."""
    weight = weight[:, varying(weight)]
    if not weight.size:
        return np.zeros(len(weight))
    return np.sqrt((((weight - weight.mean(axis=0)) / weight.std(axis=0)) ** 2).mean(axis=1))


def summarize_choices(survey: Survey) -> dict[str, Any]:
    """The figures of a survey of routed stages: which branches images take, and what that costs."""
    stages = survey.decisions.items()
    connections = [(name, j) for name, choices in stages for j in choices.rows]
    branches = next(iter(survey.decisions.values())).columns
    exists = torch.cat([choices.learned for _, choices in stages])
    gates = torch.cat([choices.gate for _, choices in stages], dim=1)
    frequency = gates.mean(dim=0)
    unused = [
        branch_name(connections[c][0], connections[c][1], branches[k])
        for c, k in (exists & frequency.eq(0)).nonzero().tolist()
    ]
    varies = frequency.gt(0) & frequency.lt(1)
    distance = (gates - frequency).abs().sum(dim=(1, 2)) / 2 / len(frequency)
    images = [
        {"file": x["file"], "macs": x["macs"], "dearest_macs": x["all_open_macs"], "distance": d}
        for x, d in zip(survey.images, distance.tolist(), strict=True)
    ]
    return {
        "num_images": len(images),
        "branches": list(branches),
        "connections": {
            f"{name}, {j}": row
            for (name, j), row in zip(connections, frequency.tolist(), strict=True)
        },
        "unused_branches": unused,
        "connections_that_vary": int(varies.any(dim=1).sum()),
        "share_of_dearest": _spread(np.array([x["macs"] / x["dearest_macs"] for x in images])),
        "images": images,
    }


def choose_examples(report: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Pick at most ``count`` of a report's images, evenly from the nearest to the mean to the
    farthest."""
    images = sorted(report["images"], key=lambda image: image["distance"])
    places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [images[k] for k in places]


def _spread(values: np.ndarray) -> dict[str, float]:
    names = ("mean", "std", "min", "max")
    return {name: float(getattr(values, name)()) for name in names}
