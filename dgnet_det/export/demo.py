"""A detector's findings in images and video frames, as pictures and as records."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask
from detectron2.data import MetadataCatalog

from dgnet_det.errors import UserError
from dgnet_det.export.predictor import Detections, Predictor, detector_of
from dgnet_det.modeling.observation import dynamic_graphs, record_edge_weights
from dgnet_det.utils.graph_pictures import draw_wiring, largest_weight
from dgnet_det.utils.pictures import draw_detections, figure_pixels

SIDE_BY_WIRING = 560  # pixels, of the longer side of an image beside its wiring

# What the fields of a record are, for the reader of a JSON file.
FIELDS = {
    "box": "left, top, right, bottom, in pixels of the image or frame",
    "score": "0 to 1",
    "class_id": "place in class_names, from 0",
    "keypoints": "x, y in pixels and score of each keypoint, of a detector that finds them",
    "mask": "COCO's compressed run-length encoding, of a detector with masks",
}


class Annotated(NamedTuple):
    """An image with its detections."""

    picture: np.ndarray  # [H', W', 3] RGB, uint8
    detections: Detections


@contextmanager
def annotator(
    predictor: Predictor, *, wiring: bool, limit: float | None = None
) -> Iterator[Callable[[np.ndarray], Annotated]]:
    """A function that detects in an image, [H, W, 3] BGR, uint8, and draws what it found.

    Args:
        predictor: the detector.
        wiring: whether the wiring is drawn beside the image.
        limit: the largest weight of the scale of colours, which all pictures share; default: the
            first image's.

    Raises:
        UserError: the network has no wiring.
    """
    if wiring and not dynamic_graphs(predictor.model):
        raise UserError("--wiring: the plain network has no wiring to draw")
    detector = detector_of(predictor)
    metadata = MetadataCatalog.get(next(iter(predictor.cfg.DATASETS.TRAIN), "none"))

    with record_edge_weights(predictor.model) as latest:

        def annotate(image: np.ndarray) -> Annotated:
            nonlocal limit
            detections = detector(image)
            side = SIDE_BY_WIRING if wiring else None
            picture = draw_detections(image[:, :, ::-1], detections, metadata, side=side)
            if wiring:
                limit = largest_weight(latest) if limit is None else limit
                picture = figure_pixels(draw_wiring(picture, latest, limit=limit))
            return Annotated(picture, detections)

        yield annotate


def to_records(detections: Detections) -> list[dict[str, Any]]:
    """Detections as JSON takes them, each with the :data:`FIELDS` that it has and its
    ``class_name``."""
    records = []
    for k, name in enumerate(detections.class_names):
        record: dict[str, Any] = {
            "box": _rounded(detections.boxes[k], 2),
            "score": round(float(detections.scores[k]), 4),
            "class_id": int(detections.classes[k]),
            "class_name": name,
        }
        if detections.keypoints is not None:
            record["keypoints"] = [_rounded(point, 2) for point in detections.keypoints[k]]
        if detections.masks is not None:
            mask = pycocotools.mask.encode(np.asfortranarray(detections.masks[k], np.uint8))
            record["mask"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        records.append(record)
    return records


def _rounded(values: np.ndarray, decimals: int) -> list[float]:
    return [round(float(value), decimals) for value in values]
