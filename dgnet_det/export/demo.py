"""What a detector finds in images and videos, as pictures and as records for JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import (
    annotations_to_instances,
    transform_instance_annotations,
)
from detectron2.structures import Instances
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from dgnet_det.data import read_image
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import Detector, Predictor
from dgnet_det.graph.routing import EdgeWeights
from dgnet_det.modeling.observation import dynamic_graphs, graph_statistics, record_edge_weights
from dgnet_det.utils.graph_pictures import GraphPanel, Scale, draw_graphs
from dgnet_det.utils.pictures import draw_objects, figure_pixels, save_picture, side_by_side
from dgnet_det.utils.videos import Video, written_video

SIDE_BY_GRAPHS = 600  # pixels, of the longer side of an image beside its graphs

# What the fields of a record are, for the reader of a JSON file.
FIELDS = {
    "box": "left, top, right, bottom, in pixels of the image or frame",
    "score": "0 to 1",
    "class_id": "place in class_names, from 0",
    "keypoints": "x, y in pixels and score of each keypoint, of a detector that finds them",
    "mask": "COCO's compressed run-length encoding, of a detector with masks",
    "graphs": "with --wiring: alpha (0: closed edge) and weight, the factor in the sum, of every"
    " edge, row j for the edges into node j",
}


def skeleton_of(dataset: str) -> list[tuple[int, int]]:
    """The pairs of keypoints that Detectron2's catalog connects for a dataset, if any."""
    metadata = MetadataCatalog.get(dataset)
    names = metadata.get("keypoint_names", ())
    rules = metadata.get("keypoint_connection_rules", ())
    return [(names.index(a), names.index(b)) for a, b, _ in rules]


def draw_detections(
    image: np.ndarray,
    found: Instances,
    class_names: Sequence[str],
    *,
    skeleton: Sequence[tuple[int, int]] = (),
    side: int | None = None,
) -> np.ndarray:
    """Draw what a detector found, with class names and scores.

    Args:
        image: [H, W, 3] RGB, uint8.
        found: in it, see :meth:`Detector.__call__`.
        class_names: of the detector.
        skeleton, side: see :func:`draw_objects`.

    Returns:
        [H', W', 3] RGB, uint8.
    """
    fields = found.get_fields()
    classes, scores = found.pred_classes.tolist(), found.scores.tolist()
    return draw_objects(
        image,
        found.pred_boxes.tensor.numpy(),
        classes,
        [
            (f"{class_names[k]} {score:.0%}", f"{score:.0%}")
            for k, score in zip(classes, scores, strict=True)
        ],
        masks=fields["pred_masks"].numpy() if "pred_masks" in fields else None,
        keypoints=fields["pred_keypoints"].numpy() if "pred_keypoints" in fields else None,
        skeleton=skeleton,
        side=side,
    )


def draw_truth(
    image: np.ndarray,
    annotations: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    skeleton: Sequence[tuple[int, int]] = (),
    side: int | None = None,
) -> np.ndarray:
    """Draw annotations in Detectron2's dataset format, with class names. Arguments and picture are
    those of :func:`draw_detections`."""
    # Detectron2 takes a field from all annotations or from none.
    common = set.intersection(*map(set, annotations)) if annotations else set()
    size = image.shape[0], image.shape[1]
    truth = annotations_to_instances(
        [
            transform_instance_annotations({key: a[key] for key in common}, [], size)
            for a in annotations
        ],
        size,
        mask_format="bitmask",
    )
    fields, classes = truth.get_fields(), truth.gt_classes.tolist()
    return draw_objects(
        image,
        truth.gt_boxes.tensor.numpy(),
        classes,
        [
            (class_names[k] + (" (crowd)" if a.get("iscrowd") else ""),)
            for k, a in zip(classes, annotations, strict=True)
        ],
        masks=fields["gt_masks"].tensor.numpy() if "gt_masks" in fields else None,
        keypoints=fields["gt_keypoints"].tensor.numpy() if "gt_keypoints" in fields else None,
        skeleton=skeleton,
        side=side,
    )


def draw_edge_weights(model: nn.Module, edge_weights: Mapping[str, EdgeWeights]) -> Figure:
    """Draw the graphs of a model with their edge weights for one image: α in the cells, and as arcs
    the factor in the sum, which is α or, in the residual wiring, γ·α.

    Args:
        model: the model. Its largest γ is the limit of a scale, so that all its pictures can be
            compared.
        edge_weights: by graph, of one image, as :func:`record_edge_weights` gives them.
    """
    panels = []
    for name, weights in edge_weights.items():
        edges = weights.edges.cpu().numpy()
        is_open = weights.alpha[0].ne(0).cpu().numpy()
        alpha, weight = (
            np.where(is_open, values[0].double().cpu(), np.nan)
            for values in (weights.alpha, weights.weight)
        )
        title = f"{name}: {(edges & is_open).sum()} of {edges.sum()} open"
        absent = weights.absent()[0].cpu().numpy()
        panels.append(GraphPanel(title, edges, weight, alpha, absent, weights.fixed_chain))
    arcs = Scale.of_alpha()
    if gammas := [p for name, p in model.named_parameters() if ".gammas." in name]:
        arcs = Scale.of_gamma_alpha(max(float(gamma.detach().abs().max()) for gamma in gammas))
    return draw_graphs(panels, arcs, Scale.of_alpha())


class Annotator:
    """Detects in images, one after the other, and draws what it found."""

    def __init__(
        self,
        detector: Detector,
        *,
        confidence: float = 0.0,
        graphs: bool = False,
        skeleton: Sequence[tuple[int, int]] = (),
    ) -> None:
        """
        Args:
            detector: the detector.
            confidence: what a detection's score must be above.
            graphs: whether each picture has the image's graphs beside it.
            skeleton: see :func:`draw_objects`.

        Raises:
            UserError: ``detector`` has no graphs to show.
        """
        self.detector, self.confidence, self.skeleton = detector, confidence, skeleton
        self.model: nn.Module | None = None
        if graphs:
            if not isinstance(detector, Predictor):
                raise UserError("an exported file keeps its edge weights to itself: no graphs")
            if not dynamic_graphs(detector.model):
                raise UserError("MODEL.DGNET.EDGE_WEIGHTS none: a plain network has no graphs")
            self.model = detector.model

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Detect in an image, [H, W, 3] BGR, uint8.

        Returns:
            The picture, [H', W', 3] RGB, uint8, and a record: ``detections`` and, where the graphs
            are drawn, ``graphs``.
        """
        names = self.detector.class_names
        with record_edge_weights(self.model or nn.Identity()) as edge_weights:
            found = self.detector(image)
        found = found[found.scores > self.confidence]
        picture = draw_detections(
            image[:, :, ::-1],
            found,
            names,
            skeleton=self.skeleton,
            side=SIDE_BY_GRAPHS if self.model else None,
        )
        record: dict[str, Any] = {"detections": to_records(found, names)}
        if self.model:
            graphs = figure_pixels(draw_edge_weights(self.model, edge_weights))
            picture = side_by_side([picture, graphs])
            record["graphs"] = {
                name: {
                    **graph_statistics(weights),
                    "alpha": weights.alpha[0].tolist(),
                    "weight": weights.weight[0].tolist(),
                }
                for name, weights in edge_weights.items()
            }
        return picture, record


def annotate_image(annotate: Annotator, file: Path, target: Path) -> dict[str, Any]:
    """Write the picture of an image file.

    Returns:
        Its record.

    Raises:
        UserError: the image does not decode, or the picture cannot be written.
    """
    image = read_image(file, "BGR")
    picture, record = annotate(image)
    save_picture(picture, target)
    size = {"width": image.shape[1], "height": image.shape[0]}
    return {"file": str(file), "picture": target.name, **size, **record}


def annotate_video(annotate: Annotator, file: Path, target: Path) -> dict[str, Any]:
    """Write the annotated video of a video file.

    Returns:
        Its record, which says how many frames its header states where fewer could be read.

    Raises:
        UserError: the video does not decode, or the new one cannot be written.
    """
    video = Video(file)
    frames: list[dict[str, Any]] = []
    with written_video(target, video.rate) as append:
        progress = tqdm(
            video, total=video.num_frames or None, desc=file.name, unit="frame", leave=False
        )
        for frame in progress:
            picture, record = annotate(frame)
            append(picture[:, :, ::-1])
            frames.append({"frame": len(frames), **record})
    size = {"width": frame.shape[1], "height": frame.shape[0]}
    record = {"file": str(file), "picture": target.name, **size, "frames_per_second": video.rate}
    if len(frames) < video.num_frames:
        record["frames_in_header"] = video.num_frames
    return {**record, "frames": frames}


def to_records(found: Instances, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Detections as JSON takes them: for each its ``class_name`` and those of :data:`FIELDS` that
    it has."""
    records: list[dict[str, Any]] = [
        {
            "box": [round(x, 2) for x in box],
            "score": round(score, 4),
            "class_id": k,
            "class_name": class_names[k],
        }
        for box, score, k in zip(
            found.pred_boxes.tensor.tolist(),
            found.scores.tolist(),
            found.pred_classes.tolist(),
            strict=True,
        )
    ]
    if found.has("pred_keypoints"):
        for record, keypoints in zip(records, found.pred_keypoints.tolist(), strict=True):
            record["keypoints"] = [[round(x, 2) for x in point] for point in keypoints]
    if found.has("pred_masks"):
        for record, mask in zip(records, found.pred_masks.numpy(), strict=True):
            encoded = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
            record["mask"] = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
    return records
