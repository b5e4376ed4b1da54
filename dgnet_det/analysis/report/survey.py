"""What a detector's routers decide on every image of a dataset."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode
from tqdm import tqdm

from dgnet_det.analysis.counts import Size, backbone_counts, backbone_of, record_counts
from dgnet_det.data import read_image
from dgnet_det.export.predictor import Detections, Predictor, detector_of
from dgnet_det.graph.routing import EdgeWeights
from dgnet_det.modeling.observation import record_edge_weights


class Graph(NamedTuple):
    """One graph of N nodes."""

    name: str
    edges: np.ndarray  # [N, N] bool, row j for the edges into node j: those that routers weigh
    residual: bool  # whether the chain j-1 → j is fixed


class SurveyedImage(NamedTuple):
    """One image.

    Attributes:
        file: its name.
        size: height and width in pixels, as in the file.
        label: the class that covers the largest area of it; empty if there is none.
        num_detections: above the detector's score threshold.
        macs: multiply-adds that the backbone ran.
        all_open_macs: the same if no edge were closed.
    """

    file: str
    size: Size
    label: str
    num_detections: int
    macs: int
    all_open_macs: int


class Survey(NamedTuple):
    """What was seen on n images, for the E edges of all graphs in the order of :meth:`edges`."""

    graphs: list[Graph]
    images: list[SurveyedImage]
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
        matrices, start = [], 0
        for graph in self.graphs:
            matrix = np.full(graph.edges.shape, np.nan)
            count = int(graph.edges.sum())
            matrix[graph.edges] = values[start : start + count]
            matrices.append(matrix)
            start += count
        return matrices


def survey_images(
    predictor: Predictor, images: Sequence[Mapping[str, Any]], class_names: Sequence[str] | None
) -> Survey:
    """Run a detector on images, with a progress bar.

    Args:
        predictor: the detector, whose backbone has edge weights.
        images: at least one, in Detectron2's dataset format: ``file_name``, and ``annotations`` if
            ``class_names`` are given.
        class_names: of the annotations; None to take an image's class from its detections.
    """
    detector = detector_of(predictor)
    wirings: list[dict[str, EdgeWeights]] = []
    seen: list[tuple[str, Size, str, int]] = []
    with record_edge_weights(predictor.model) as latest, record_counts(predictor.model) as counts:
        for record in tqdm(images, desc="images", unit="image"):
            pixels = read_image(record["file_name"], "BGR")
            detections = detector(pixels)
            if class_names is None:
                label = class_of_detections(detections)
            else:
                label = class_of_annotations(record["annotations"], class_names)
            size = pixels.shape[0], pixels.shape[1]
            seen.append((str(record["file_name"]), size, label, len(detections.boxes)))
            wirings.append({name: _on_cpu(wiring) for name, wiring in latest.items()})

    backbone = backbone_of(predictor.model)
    all_open = {size: backbone_counts(backbone, size).macs for size, _ in dict.fromkeys(counts)}
    first = wirings[0]
    edges = {name: wiring.edges for name, wiring in first.items()}
    return Survey(
        graphs=[Graph(name, edges[name].numpy(), w.fixed_chain) for name, w in first.items()],
        images=[
            SurveyedImage(*facts, ran.macs, all_open[size])
            for facts, (size, ran) in zip(seen, counts, strict=True)
        ],
        weight=_rows([[w[name].weight[0][edges[name]] for name in edges] for w in wirings]),
        is_open=_rows([[w[name].alpha[0][edges[name]] for name in edges] for w in wirings]) != 0,
        absent={name: np.stack([w[name].absent()[0].numpy() for w in wirings]) for name in edges},
    )


def class_of_annotations(annotations: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The class whose boxes, crowds left out, have the largest area in all; empty if there is
    none."""
    areas: Counter[str] = Counter()
    for annotation in annotations:
        if not annotation.get("iscrowd"):
            _, _, width, height = BoxMode.convert(
                annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS
            )
            areas[names[annotation["category_id"]]] += width * height
    return _largest(areas)


def class_of_detections(detections: Detections) -> str:
    """The class whose boxes have the largest area in all; empty if there is none."""
    areas: Counter[str] = Counter()
    for name, (left, top, right, bottom) in zip(
        detections.class_names, detections.boxes.tolist(), strict=True
    ):
        areas[name] += (right - left) * (bottom - top)
    return _largest(areas)


def _largest(areas: Counter[str]) -> str:
    return max(areas, key=lambda name: areas[name], default="")


def _on_cpu(wiring: EdgeWeights) -> EdgeWeights:
    return wiring._replace(alpha=wiring.alpha.cpu(), weight=wiring.weight.cpu())


def _rows(tensors: list[list[Any]]) -> np.ndarray:
    return np.array([np.concatenate([t.double().numpy() for t in row]) for row in tensors])
