"""What a detector's routers decide on every image of a dataset."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from torch import nn
from tqdm import tqdm

from dgnet_det.analysis.counts import ImageCounter
from dgnet_det.data import CheckedDatasetMapper
from dgnet_det.modeling.observation import record_edge_weights


class Graph(NamedTuple):
    """One graph of N nodes."""

    name: str
    edges: np.ndarray  # [N, N] bool, row j for the edges into node j: those that routers weigh
    fixed_chain: bool  # whether the chain j-1 → j is fixed


class Survey(NamedTuple):
    """What was seen on n images, for the E edges of all graphs in the order of :meth:`edges`."""

    graphs: list[Graph]
    # Of each: "file", "height" and "width" of the file, "class" (empty if there is none),
    # "detections" (their number), "macs" that the backbone ran and "all_open_macs".
    images: list[dict[str, Any]]
    weight: np.ndarray  # [n, E] float64: α, or γ·α; 0 where the edge is closed
    is_open: np.ndarray  # [n, E] bool
    absent: dict[str, np.ndarray]  # for each graph [n, N] bool

    def edges(self) -> list[tuple[str, int, int]]:
        """The graph of every edge and the nodes that it comes from and goes to."""
        return [
            (graph.name, int(source), int(to))
            for graph in self.graphs
            for to, source in np.argwhere(graph.edges)
        ]

    def matrices(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all edges, [E], as a matrix [N, N] for each graph, NaN where there is no
        edge."""
        parts = np.split(values, np.cumsum([graph.edges.sum() for graph in self.graphs])[:-1])
        matrices = [np.full(graph.edges.shape, np.nan) for graph in self.graphs]
        for matrix, graph, part in zip(matrices, self.graphs, parts, strict=True):
            matrix[graph.edges] = part
        return matrices


@torch.no_grad()
def survey_images(
    model: nn.Module,
    cfg: CfgNode,
    images: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    annotated: bool,
    confidence: float,
) -> Survey:
    """Run a detector on images, with a progress bar.

    Args:
        model: a detector with edge weights, in evaluation mode.
        cfg: its config.
        images: at least one, in Detectron2's dataset format, or with a ``file_name`` alone.
        class_names: of the annotations, or of the detections.
        annotated: whether the class of an image is that of its annotations, not its detections.
        confidence: what the score of a detection must be above.
    """
    mapper = CheckedDatasetMapper(cfg, is_train=False)
    count = ImageCounter(model)
    seen, recorded = [], []
    with record_edge_weights(model) as edge_weights:
        for image in tqdm(images, desc="images", unit="image"):
            inputs = mapper(image)
            found = model([inputs])[0]["instances"].to("cpu")
            found = found[found.scores > confidence]
            recorded.append(dict(edge_weights))
            if annotated:
                label = class_of_annotations(image["annotations"], class_names)
            else:
                areas = found.pred_boxes.area().tolist()
                classes = found.pred_classes.tolist()
                label = _largest(zip(classes, areas, strict=True), class_names)
            counts = count(inputs["image"])
            seen.append(
                {
                    "file": str(image["file_name"]),
                    "height": inputs["height"],
                    "width": inputs["width"],
                    "class": label,
                    "detections": len(found),
                    "macs": counts.ran.macs,
                    "all_open_macs": counts.all_open.macs,
                }
            )

    def of_edges(part: str) -> np.ndarray:
        rows = [[getattr(w, part)[0, w.edges] for w in row.values()] for row in recorded]
        return np.array([torch.cat(row).double().cpu().numpy() for row in rows])

    return Survey(
        [Graph(n, w.edges.cpu().numpy(), w.fixed_chain) for n, w in recorded[0].items()],
        seen,
        weight=of_edges("weight"),
        is_open=of_edges("alpha") != 0,
        absent={
            name: np.stack([row[name].absent()[0].cpu().numpy() for row in recorded])
            for name in recorded[0]
        },
    )


def class_of_annotations(annotations: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The class whose boxes, crowds left out, have the largest area in all; empty if there is
    none."""
    boxes = [
        (a["category_id"], BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS))
        for a in annotations
        if not a.get("iscrowd")
    ]
    return _largest([(label, box[2] * box[3]) for label, box in boxes], names)


def _largest(areas: Iterable[tuple[int, float]], names: Sequence[str]) -> str:
    """The name of the class of the largest area in all, from the class and area of each box."""
    totals: Counter[int] = Counter()
    for label, area in areas:
        totals[label] += area  # type: ignore[assignment]
    return names[max(totals, key=lambda label: totals[label])] if totals else ""
