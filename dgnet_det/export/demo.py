"""Pictures, and records for JSON, of the detections in images and videos."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import Metadata
from detectron2.structures import BoxMode, Instances
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from dgnet_det.data import read_image
from dgnet_det.export.predictor import Detector, Predictor
from dgnet_det.graph.decisions import Decisions
from dgnet_det.modeling.observation import graph_statistics, record_decisions, routed_stages
from dgnet_det.utils.detection_pictures import draw_objects
from dgnet_det.utils.graph_pictures import GraphPanel, Scale, draw_branches, draw_graphs
from dgnet_det.utils.pictures import figure_pixels, save_picture, side_by_side
from dgnet_det.utils.videos import Video, written_video

SIDE_BY_GRAPHS = 600  # of an image beside its graphs

# Explains the fields of a record to the reader of a JSON file.
FIELDS = {
    "box": "left, top, right, bottom, in pixels of the image or frame",
    "score": "0 to 1",
    "class_id": "place in class_names, from 0",
    "keypoints": "x, y in pixels and score of each keypoint, of a detector that finds them",
    "mask": "COCO's compressed run-length encoding, of a detector with masks",
    "graphs": "with --wiring: alpha (0: closed edge) and weight, the factor in the sum, of every"
    " edge, row j for the edges into node j",
    "choices": "with --wiring: of every connection that has a choice, the probability of each"
    " branch; the one of the largest ran",
}


def draw_detections(
    image: np.ndarray,
    found: Instances,
    class_names: Sequence[str],
    *,
    metadata: Metadata | None = None,
    side: int | None = None,
) -> np.ndarray:
    """Draw the detections ``found`` in an image, [H, W, 3] RGB, uint8, with class names and scores.
    ``metadata``, ``side`` and the result are as for :func:`draw_objects`."""
    scores, fields = found.scores.tolist(), found.get_fields()
    return draw_objects(
        image,
        found.pred_boxes.tensor.numpy(),
        found.pred_classes.tolist(),
        class_names,
        notes=[f" {score:.0%}" for score in scores],
        masks=fields.get("pred_masks"),
        keypoints=fields.get("pred_keypoints"),
        metadata=metadata,
        side=side,
    )


def draw_truth(
    image: np.ndarray,
    annotations: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    parts: Collection[str] = ("segmentation", "keypoints"),
    metadata: Metadata | None = None,
    side: int | None = None,
) -> np.ndarray:
    """Draw annotations in Detectron2's dataset format: boxes, and the ``parts`` that all of them
    have. Otherwise as :func:`draw_detections`."""
    # The visualizer takes a field from all annotations or from none.
    drawn = set(parts).intersection(*map(set, annotations))
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    masks, points = (
        [a[part] for a in annotations] if annotations and part in drawn else None
        for part in ("segmentation", "keypoints")
    )
    return draw_objects(
        image,
        np.reshape(boxes, (-1, 4)),
        [a["category_id"] for a in annotations],
        class_names,
        notes=[" (crowd)" if a.get("iscrowd") else "" for a in annotations],
        masks=masks,
        keypoints=np.reshape(points, (len(points), -1, 3)) if points else None,
        metadata=metadata,
        side=side,
    )


def draw_edge_weights(model: nn.Module, edge_weights: Mapping[str, Decisions]) -> Figure:
    """Draw the graphs of a model with the edge weights that :func:`record_decisions` recorded for
    one image: α in the cells, and in the arcs the factor in the sum, α or γ·α. The scale of γ·α
    ends at the model's largest γ, so that all its pictures can be compared."""
    panels = []
    for name, weights in edge_weights.items():
        edges = weights.learned.cpu().numpy()
        is_open = weights.value[0].ne(0).cpu().numpy()
        alpha, weight = (
            np.where(is_open, values[0].double().cpu(), np.nan)
            for values in (weights.value, weights.weight)
        )
        title = f"{name}: {(edges & is_open).sum()} of {edges.sum()} open"
        absent = weights.absent()[0].cpu().numpy()
        panels.append(GraphPanel(title, edges, weight, alpha, absent))
    arcs = Scale.of_alpha()
    if gammas := [p for name, p in model.named_parameters() if ".gammas." in name]:
        arcs = Scale.of_gamma_alpha(max(float(gamma.detach().abs().max()) for gamma in gammas))
    return draw_graphs(panels, arcs, Scale.of_alpha())


def draw_choices(choices: Mapping[str, Decisions]) -> Figure:
    """Draw the branches that one image took, and their probabilities."""
    names = [f"{name}, {j}" for name, of_stage in choices.items() for j in of_stage.rows]
    probability = torch.cat([of_stage.value[0] for of_stage in choices.values()]).cpu().numpy()
    taken = torch.cat([of_stage.gate[0] > 0 for of_stage in choices.values()]).cpu().numpy()
    branches = next(iter(choices.values())).columns
    return draw_branches(names, branches, probability, taken, label="probability")


def annotate(
    detector: Detector,
    image: np.ndarray,
    *,
    confidence: float,
    graphs: bool = False,
    metadata: Metadata | None = None,
    truth: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Detect in an image, [H, W, 3] BGR, uint8, and draw the detections.

    Args:
        detector: if ``graphs``, a :class:`Predictor` that decides on edges or branches.
        confidence: detections of a higher score are shown.
        graphs: whether the image's graphs, or branches, are drawn beside it.
        metadata: as for :func:`draw_objects`.
        truth: annotations that are drawn beside the detections.

    Returns:
        The picture, [H', W', 3] RGB, uint8, and a record for JSON: ``detections`` and ``graphs`` or
        ``choices``.
    """
    model = detector.model if graphs and isinstance(detector, Predictor) else nn.Identity()
    with record_decisions(model) as decisions:
        found = detector(image)
    found = found[found.scores > confidence]
    names, side = detector.class_names, SIDE_BY_GRAPHS if graphs else None
    image = np.ascontiguousarray(image[:, :, ::-1])
    pictures = {"detections": draw_detections(image, found, names, metadata=metadata, side=side)}
    record: dict[str, Any] = {"detections": to_records(found, names)}
    if truth is not None:
        parts = {"pred_masks": "segmentation", "pred_keypoints": "keypoints"}
        pictures["ground truth"] = draw_truth(
            image,
            truth,
            names,
            parts=[part for field, part in parts.items() if found.has(field)],
            metadata=metadata,
            side=side,
        )
    if routed_stages(model):
        pictures["branches"] = figure_pixels(draw_choices(decisions))
        record["choices"] = {
            f"{name}, {j}": dict(zip(of_stage.columns, row.tolist(), strict=True))
            for name, of_stage in decisions.items()
            for j, row in zip(of_stage.rows, of_stage.value[0], strict=True)
        }
    elif graphs:
        pictures["edge weights"] = figure_pixels(draw_edge_weights(model, decisions))
        record["graphs"] = {
            name: {
                **graph_statistics(weights),
                "alpha": weights.value[0].tolist(),
                "weight": weights.weight[0].tolist(),
            }
            for name, weights in decisions.items()
        }
    return side_by_side(pictures), record


def annotate_image(detector: Detector, file: Path, target: Path, **options: Any) -> dict[str, Any]:
    """Write the picture of an image file, and return its record. The options are those of
    :func:`annotate`.

    Raises:
        UserError: the image does not decode.
    """
    image = read_image(file, "BGR")
    picture, record = annotate(detector, image, **options)
    save_picture(picture, target)
    size = {"width": image.shape[1], "height": image.shape[0]}
    return {"file": str(file), "picture": target.name, **size, **record}


def annotate_video(detector: Detector, file: Path, target: Path, **options: Any) -> dict[str, Any]:
    """As :func:`annotate_image`, of a video file and its frames.

    Raises:
        UserError: the video does not decode, or the new one cannot be written.
    """
    video = Video(file)
    frames: list[dict[str, Any]] = []
    with written_video(target, video.rate) as append:
        total = video.num_frames or None
        for frame in tqdm(video, file.name, total, unit="frame", leave=False):
            picture, record = annotate(detector, frame, **options)
            append(picture[:, :, ::-1])
            frames.append({"frame": len(frames), **record})
    size = {"width": frame.shape[1], "height": frame.shape[0]}
    rate = {"frames_per_second": video.rate, "frames_in_header": video.num_frames}
    return {"file": str(file), "picture": target.name, **size, **rate, "frames": frames}


def to_records(found: Instances, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Detections for JSON: their ``class_name`` and the :data:`FIELDS` that they have."""
    columns: dict[str, list] = {
        "box": found.pred_boxes.tensor.double().numpy().round(2).tolist(),
        "score": found.scores.double().numpy().round(4).tolist(),
        "class_id": found.pred_classes.tolist(),
        "class_name": [class_names[k] for k in found.pred_classes.tolist()],
    }
    if found.has("pred_keypoints"):
        columns["keypoints"] = found.pred_keypoints.double().numpy().round(2).tolist()
    if found.has("pred_masks"):
        masks = np.asfortranarray(found.pred_masks.numpy().transpose(1, 2, 0), np.uint8)
        columns["mask"] = [
            {**mask, "counts": mask["counts"].decode("ascii")} for mask in mask_util.encode(masks)
        ]
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
