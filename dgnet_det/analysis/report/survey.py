"""What a detector's routers decide on every image of a dataset, in figures as JSON takes them and
the page prints them."""

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
    """What was seen on n images. Their E edges are those that routers weigh, graph by graph, row by
    row of its matrix."""

    # Of each: "file", "height" and "width" of the file, "detections" (their number), "macs" that
    # the backbone ran and "all_open_macs".
    images: list[dict[str, Any]]
    graphs: dict[str, Decisions]  # by name, of all images, [n, N, N] float64 on the CPU

    def of_edges(self, part: str) -> np.ndarray:
        """The ``weight`` or ``value`` (α) of every edge, [n, E]; 0 where it is closed."""
        parts = [getattr(graph, part)[:, graph.learned] for graph in self.graphs.values()]
        return torch.cat(parts, dim=1).numpy()

    def matrices(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all edges, [E], as a matrix [N, N] for each graph, NaN where there is no
        edge."""
        matrices, start = [], 0
        for graph in self.graphs.values():
            matrix, edges = np.full(graph.learned.shape, np.nan), graph.learned.numpy()
            matrix[edges] = values[start : start + edges.sum()]
            start += edges.sum()
            matrices.append(matrix)
        return matrices


@torch.no_grad()
def survey_images(
    model: nn.Module,
    cfg: CfgNode,
    images: Sequence[Mapping[str, Any]],
    *,
    confidence: float,
) -> Survey:
    """Run a detector on images, with a progress bar.

    Args:
        model: with edge weights, in evaluation mode.
        cfg: its config.
        images: at least one, in Detectron2's dataset format, or with a ``file_name`` alone.
        confidence: what the score of a detection must be above.
    """
    read, count = CheckedDatasetMapper(cfg, is_train=False), ImageCounter(model)
    seen, recorded = [], []
    with record_decisions(model) as edge_weights:
        for image in tqdm(images, desc="images", unit="image"):
            inputs = read(image)
            found = model([inputs])[0]["instances"].to("cpu")
            found = found[found.scores > confidence]
            recorded.append(dict(edge_weights))
            counts = count(inputs["image"])
            seen.append(
                {
                    "file": str(image["file_name"]),
                    "height": inputs["height"],
                    "width": inputs["width"],
                    "detections": len(found),
                    "macs": counts.ran.macs,
                    "all_open_macs": counts.all_open.macs,
                }
            )

    def of_all(name: str, part: str) -> Any:
        return torch.cat([getattr(row[name], part) for row in recorded]).double().cpu()

    return Survey(
        seen,
        {
            name: weights._replace(
                **{part: of_all(name, part) for part in ("gate", "value", "weight")},
                learned=weights.learned.cpu(),
            )
            for name, weights in edge_weights.items()
        },
    )


def varying(weight: np.ndarray) -> np.ndarray:
    """The places of the edges whose weight, [n, E], is not the same in all images."""
    return np.flatnonzero(np.ptp(weight, axis=0) > ROUNDING)


def summarize(survey: Survey) -> dict[str, Any]:
    """The figures of a survey."""
    weight, is_open = survey.of_edges("weight"), survey.of_edges("value") != 0
    macs, all_open = (
        np.array([image[key] for image in survey.images]) for key in ("macs", "all_open_macs")
    )
    edges: list[dict[str, Any]] = []
    places = [
        (name, int(i), int(j), len(graph.learned) - 1)
        for name, graph in survey.graphs.items()
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
    """How far each image's edge weights, [n, E], are from the mean, [n]: the root of the mean over
    the edges of the squared difference in standard deviations."""
    weight = weight[:, varying(weight)]
    if not weight.size:
        return np.zeros(len(weight))
    return np.sqrt((((weight - weight.mean(axis=0)) / weight.std(axis=0)) ** 2).mean(axis=1))


@torch.no_grad()
def survey_choices(
    model: nn.Module, cfg: CfgNode, images: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Which branches images take in a detector with routed stages, and what that costs. Arguments
    are those of :func:`survey_images`."""
    read, count = CheckedDatasetMapper(cfg, is_train=False), ImageCounter(model)
    seen: list[dict[str, Any]] = []
    gates = []
    with record_decisions(model) as choices:
        for image in tqdm(images, desc="images", unit="image"):
            _, ran, dearest = count(read(image)["image"])
            seen.append({"file": str(image["file_name"]), "macs": ran.macs})
            seen[-1]["dearest_macs"] = dearest.macs
            gates.append(torch.cat([of_stage.gate[0] for of_stage in choices.values()]).cpu())
    frequency = torch.stack(gates).double().mean(dim=0)
    rows = iter(frequency)
    unused = [
        branch_name(name, j, branch)
        for name, one in choices.items()
        for j, exists in zip(one.rows, one.learned.tolist(), strict=True)
        for branch, share, there in zip(one.columns, next(rows).tolist(), exists, strict=True)
        if there and not share
    ]
    names = [f"{name}, {j}" for name, one in choices.items() for j in one.rows]
    return {
        "num_images": len(seen),
        "branches": list(next(iter(choices.values())).columns),
        "connections": dict(zip(names, frequency.tolist(), strict=True)),
        "unused_branches": unused,
        "connections_that_vary": int(frequency.lt(1).logical_and(frequency.gt(0)).any(dim=1).sum()),
        "share_of_dearest": _spread(
            np.array([image["macs"] / image["dearest_macs"] for image in seen])
        ),
        "images": [
            {**image, "distance": float((gate - frequency).abs().sum() / 2 / len(frequency))}
            for image, gate in zip(seen, gates, strict=True)
        ],
    }


def choose_examples(report: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """At most ``count`` of a report's images, evenly from the one nearest to the mean of all to the
    one farthest from it."""
    images = sorted(report["images"], key=lambda image: image["distance"])
    places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [images[k] for k in places]


def _spread(values: np.ndarray) -> dict[str, float]:
    names = ("mean", "std", "min", "max")
    return {name: float(getattr(values, name)()) for name in names}
