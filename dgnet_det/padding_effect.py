"""How much an image's batch-mates change its wiring and its detections."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import BoxMode, Instances, pairwise_iou
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from .backbones import dgnet
from .data import read_image
from .wiring import record_wiring

Size = tuple[int, int]  # height, width in pixels
MIN_REMAINING = 0.4  # a box is in a crop where at least this share of its area is
SAME_OBJECT = 0.5  # IoU

# MODEL.DGNET.MASK_PADDING, and whether the routers average over the padding, too: as they would if
# they pooled plainly, which the package itself never does.
VARIANTS = {
    "plain pooling": (False, True),
    "routers leave the padding out": (False, False),
    "padding masked": (True, False),
}


class Crop(NamedTuple):
    """A piece of an image, at its own resolution."""

    image: Tensor  # [C, H, W], 0 to 255
    boxes: np.ndarray  # [K, 4], x, y, x, y in pixels of the crop
    classes: list[int]


def cut(images: Sequence[dict[str, Any]], sizes: Sequence[Size], image_format: str) -> list[Crop]:
    """The centre of each image of a dataset in Detectron2's format, the sizes in turn."""
    crops = []
    for k, record in enumerate(images):
        pixels = read_image(record["file_name"], image_format)
        height, width = np.minimum(sizes[k % len(sizes)], pixels.shape[:2]).tolist()
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        pixels = pixels[top : top + height, left : left + width]
        annotations = [a for a in record["annotations"] if not a.get("iscrowd")]
        boxes = np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        ).reshape(-1, 4)
        clipped = (boxes - (left, top, left, top)).clip(0, (width, height, width, height))
        areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, clipped)]
        kept = areas[1] >= MIN_REMAINING * areas[0]
        classes = [a["category_id"] for a, keep in zip(annotations, kept, strict=True) if keep]
        image = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
        crops.append(Crop(image, clipped[kept], classes))
    return crops


def measure(
    model: nn.Module, crops: Sequence[Crop], mate_size: Size, batch: int, *, plain_pooling: bool
) -> dict[str, Any]:
    """Detect on every crop alone, and in batches of ``batch`` neighbouring crops and one larger
    image, the batch's first crop enlarged to ``mate_size``.

    Returns:
        The changes, and the AP of both.
    """
    patch = mock.patch.object(dgnet, "valid_sizes", _whole_sizes)
    with patch if plain_pooling else contextlib.nullcontext():
        alone = [_detect(model, [crop.image])[0] for crop in crops]
        together = []
        for start in range(0, len(crops), batch):
            images = [crop.image for crop in crops[start : start + batch]]
            mate = F.interpolate(images[0][None], mate_size, mode="bilinear")[0]
            together += _detect(model, [*images, mate])[:-1]
    weights = torch.cat([(a[1] - b[1]).abs() for a, b in zip(alone, together, strict=True)])
    detections = [(a[0], b[0]) for a, b in zip(alone, together, strict=True)]
    scores, boxes, appeared, disappeared = _changes(detections)
    return {
        "edge_weight": _spread(weights),
        "detections_alone": sum(len(a) for a, _ in detections),
        "appeared": appeared,
        "disappeared": disappeared,
        "score": _spread(scores),
        "box_pixels": _spread(boxes),
        "ap_alone": _average_precision(crops, [a for a, _ in detections]),
        "ap_together": _average_precision(crops, [b for _, b in detections]),
    }


def _whole_sizes(images: Tensor) -> Tensor:
    return torch.tensor([images.shape[2:]] * len(images), device=images.device)


@torch.no_grad()
def _detect(model: nn.Module, images: Sequence[Tensor]) -> list[tuple[Instances, Tensor]]:
    """Each image's detections, and the weights of its routed edges."""
    with record_wiring(model) as wiring:
        outputs = model([{"image": image} for image in images])
    weights = torch.cat([w.alpha[:, w.routed()] for w in wiring.values()], dim=1)
    instances = [output["instances"].to("cpu") for output in outputs]
    return list(zip(instances, weights.cpu(), strict=True))


def _changes(pairs: Sequence[tuple[Instances, Instances]]) -> tuple[Tensor, Tensor, int, int]:
    """|Δscore| and |Δcoordinate| of detections that are each other's nearest of their class, and
    how many of the others appeared and disappeared in the second of each pair."""
    scores, boxes = [torch.zeros(0)], [torch.zeros(0)]
    appeared = disappeared = 0
    for a, b in pairs:
        iou = pairwise_iou(a.pred_boxes, b.pred_boxes)
        iou *= a.pred_classes[:, None] == b.pred_classes
        rows = columns = torch.arange(0)
        if iou.numel():
            rows, columns = torch.arange(len(a)), iou.argmax(dim=1)
            same = (iou.argmax(dim=0)[columns] == rows) & (iou[rows, columns] >= SAME_OBJECT)
            rows, columns = rows[same], columns[same]
        scores.append((a.scores[rows] - b.scores[columns]).abs())
        moved = (a.pred_boxes.tensor[rows] - b.pred_boxes.tensor[columns]).abs()
        boxes.append(moved.flatten())
        appeared += len(b) - len(rows)
        disappeared += len(a) - len(rows)
    return torch.cat(scores), torch.cat(boxes), appeared, disappeared


def _spread(values: Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "max": values.max().item()} if len(values) else {}


def _average_precision(crops: Sequence[Crop], detections: Sequence[Instances]) -> float:
    """COCO's box AP, per cent; NaN if no crop has a box."""
    truth = COCO()
    annotations: list[dict[str, Any]] = []
    for k, crop in enumerate(crops):
        for box, label in zip(_to_xywh(crop.boxes), crop.classes, strict=True):
            annotations.append(_annotation(k, box, label, id=len(annotations) + 1))
    labels = sorted({label for crop in crops for label in crop.classes})
    truth.dataset = {
        "images": [{"id": k} for k in range(len(crops))],
        "categories": [{"id": label} for label in labels],
        "annotations": annotations,
        "info": {},
    }
    results = [
        _annotation(k, box, label, score=score)
        for k, instances in enumerate(detections)
        for box, label, score in zip(
            _to_xywh(instances.pred_boxes.tensor.numpy()),
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
            strict=True,
        )
    ]
    if not annotations or not results:
        return 0.0 if annotations else float("nan")
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def _annotation(image: int, box: list[float], label: int, **more: float) -> dict[str, Any]:
    area = box[2] * box[3]
    return {
        "image_id": image,
        "bbox": box,
        "category_id": label,
        "area": area,
        "iscrowd": 0,
        **more,
    }


def _to_xywh(boxes: np.ndarray) -> list[list[float]]:
    return BoxMode.convert(
        torch.as_tensor(boxes).reshape(-1, 4), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    ).tolist()
