"""A trained detector for one image at a time, and the comparison of two."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor, nn

from dgnet_det.checkpoint import DGNetCheckpointer, class_names_in
from dgnet_det.config import CHANNELS
from dgnet_det.data.own import class_names, dataset_class_names, set_num_classes
from dgnet_det.errors import UserError
from dgnet_det.modeling.build import build_model

# The outputs of an exported file, in this order: the field of Instances, and its content. Only Mask
# R-CNN has masks, only Keypoint R-CNN heat maps.
TENSORS = {
    "boxes": ("pred_boxes", "float32 [N, 4], left, top, right, bottom in pixels of the input"),
    "scores": ("scores", "float32 [N], the best first"),
    "classes": ("pred_classes", "int64 [N], places in class_names, from 0"),
    "masks": ("pred_masks", "float32 [N, 1, S, S], probabilities on a grid over the box"),
    "heatmaps": (
        "pred_keypoint_heatmaps",
        "float32 [N, K, S, S], logits of each keypoint on a grid over the box",
    ),
}

# The largest differences of equal detections. Boxes are in pixels of the resized image.
TOLERANCES = {"boxes": 0.1, "scores": 1e-3, "masks": 1e-2, "heatmaps": 1e-2}
# The share of detections that one detector alone may have: rounding decides on those at the score
# threshold or beside a better one.
MAX_UNMATCHED = 0.01


class Description(NamedTuple):
    """The facts that a user of a detector needs. An exported file holds them as JSON."""

    class_names: list[str]
    input_format: str  # "RGB", "BGR", or "L", grey
    # Images are resized, bilinearly with antialiasing as by Pillow, to a shorter side of min_size
    # pixels, or to a longer side of max_size where that is less. 0: not at all.
    min_size: int
    max_size: int
    tensors: dict[str, str]  # the input and then the outputs, in words

    @classmethod
    def of(cls, cfg: CfgNode, class_names: list[str]) -> "Description":
        """Describe the detector of a config."""
        names = ["boxes", "scores", "classes"]
        names += ["masks"] if cfg.MODEL.MASK_ON else []
        names += ["heatmaps"] if cfg.MODEL.KEYPOINT_ON else []
        channels = CHANNELS[cfg.INPUT.FORMAT]
        tensors = {"image": f"uint8 [{channels}, height, width], {cfg.INPUT.FORMAT}, resized"}
        tensors |= {name: TENSORS[name][1] for name in names}
        sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        return cls(class_names, cfg.INPUT.FORMAT, *sizes, tensors)


class Detector:
    """Finds objects in one image, a numpy array.

    Attributes:
        inference: maps an image as :meth:`prepare` makes it to its objects, in the prepared image's
            pixels, before Detectron2's postprocessing: masks are grids over boxes, [N, 1, S, S].
        description: how images are prepared for it, and its classes.
    """

    def __init__(self, inference: Callable[[Tensor], Instances], description: Description) -> None:
        self.inference = inference
        self.description = description
        self._resize = ResizeShortestEdge([description.min_size] * 2, description.max_size)

    @property
    def class_names(self) -> list[str]:
        """The names of its classes, in the order of ``pred_classes``."""
        return self.description.class_names

    def prepare(self, image: np.ndarray, image_format: str = "BGR") -> Tensor:
        """Resize an image and bring it into ``INPUT.FORMAT``, uint8 [C, H, W], for ``inference``.
        Arguments and errors are those of a call."""
        if not isinstance(image, np.ndarray):
            raise UserError(
                f"an image of type {type(image).__name__}: give an array, such as"
                " dgnet_det.data.read_image(path, 'BGR') returns"
            )
        if image.ndim != 3 or image.shape[2] != 3 or not image.size or image.dtype != np.uint8:
            raise UserError(
                f"an image of shape {list(image.shape)}, {image.dtype}: give [height, width, 3],"
                " uint8"
            )
        if image_format not in ("BGR", "RGB"):
            raise UserError(f"image_format {image_format!r}: choose BGR or RGB")
        if image_format != self.description.input_format:
            rgb = image if image_format == "RGB" else image[:, :, ::-1]
            image = convert_PIL_to_numpy(Image.fromarray(rgb), self.description.input_format)
        resized = self._resize.get_transform(image).apply_image(image)
        return torch.tensor(resized.transpose(2, 0, 1).copy())

    def __call__(self, image: np.ndarray, image_format: str = "BGR") -> Instances:
        """Detect in an image, [H, W, 3] uint8, of any size; ``image_format`` is ``BGR`` or ``RGB``.

        Returns:
            The K objects, the best first, on the CPU, as Detectron2's ``DefaultPredictor`` returns
            them: ``pred_boxes`` in pixels of ``image``, ``scores`` [K], ``pred_classes`` [K]; of
            Mask R-CNN also ``pred_masks``, bool [K, H, W]; of Keypoint R-CNN ``pred_keypoints``
            [K, number of keypoints, 3] as x, y, score.

        Raises:
            UserError: this is no such image.
        """
        found = self.inference(self.prepare(image, image_format))
        return detector_postprocess(found, *image.shape[:2]).to("cpu")


class Predictor(Detector):
    """A detector with its model and config, unlike one from an exported file."""

    def __init__(self, cfg: CfgNode, model: nn.Module, class_names: list[str]) -> None:
        """``model`` is a ``GeneralizedRCNN`` or ``RetinaNet`` in evaluation mode, ``class_names``
        are in the order of its outputs."""
        super().__init__(partial(run_model, model), Description.of(cfg, class_names))
        self.cfg, self.model = cfg, model


@torch.no_grad()
def run_model(model: nn.Module, image: Tensor) -> Instances:
    """Detect in a prepared image, in a way that can be traced."""
    if isinstance(model, GeneralizedRCNN):
        (found,) = model.inference([{"image": image}], do_postprocess=False)
    else:
        found = model([{"image": image}])[0]["instances"]
    return found[found.pred_boxes.nonempty()]


def tensors_of(found: Instances) -> dict[str, Tensor]:
    """The :data:`TENSORS` of the result of a :class:`Detector`'s ``inference``."""
    fields: Mapping[str, Tensor] = found.get_fields() | {"pred_boxes": found.pred_boxes.tensor}
    return {name: fields[field] for name, (field, _) in TENSORS.items() if field in fields}


def load_predictor(cfg: CfgNode, dataset: str = "", *, allow_untrained: bool = False) -> Predictor:
    """Load the whole detector that ``MODEL.WEIGHTS`` names.

    Args:
        cfg: its config. The checkpoint's class names, if any, set the number of classes.
        dataset: a registered dataset whose classes the detector must have.
        allow_untrained: whether ``MODEL.WEIGHTS`` may be empty.

    Raises:
        UserError: ``MODEL.WEIGHTS`` is empty or not the whole detector of this config, the classes
            are not those of ``dataset``, or as :func:`build_model`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    names = class_names_in(cfg.MODEL.WEIGHTS)
    if names:
        set_num_classes(cfg, len(names))
    model = build_model(cfg).eval()
    checkpointer = DGNetCheckpointer(
        model,
        needed="the checkpoint of a whole detector with the config's number of classes, such as"
        " model_final.pth",
        class_names=dataset_class_names([dataset]) if dataset else [],
    )
    if cfg.MODEL.WEIGHTS or not allow_untrained:
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    return Predictor(cfg, model, names or class_names(cfg))


class Comparison(NamedTuple):
    """The detections of two detectors in one image."""

    expected: int  # of the first detector
    found: int  # of the second
    unmatched: int  # of both, those that the other detector does not have
    differences: dict[str, float]  # the largest of the others, by the names of TOLERANCES


def compare_detections(expected: Detector, other: Detector, image: np.ndarray) -> Comparison:
    """Compare two detectors on an image, [H, W, 3] uint8 BGR. Two of their detections match if
    they are of one class, and each is the other's nearest within :data:`TOLERANCES`."""
    a, b = (
        {
            name: tensor.cpu().reshape(len(tensor), -1 if len(tensor) else 1)
            for name, tensor in tensors_of(detector.inference(detector.prepare(image))).items()
        }
        for detector in (expected, other)
    )
    num = len(a["boxes"]), len(b["boxes"])
    names = [name for name in TOLERANCES if name in a]
    if 0 in num:
        return Comparison(*num, sum(num), dict.fromkeys(names, 0.0))
    apart = {name: (a[name][:, None] - b[name]).abs().amax(dim=2) for name in names}
    distance = torch.stack([apart[name] / TOLERANCES[name] for name in names]).amax(dim=0)
    distance[a["classes"] != b["classes"].T] = torch.inf
    rows, nearest = torch.arange(num[0]), distance.argmin(dim=1)
    same = (distance[rows, nearest] <= 1) & (distance.argmin(dim=0)[nearest] == rows)
    return Comparison(
        *num,
        unmatched=sum(num) - 2 * int(same.sum()),
        differences={
            name: max(x[rows, nearest][same].tolist(), default=0.0) for name, x in apart.items()
        },
    )


def same_detections(comparisons: Sequence[Comparison]) -> bool:
    """Whether no more than :data:`MAX_UNMATCHED` of the detections are unmatched."""
    unmatched = sum(comparison.unmatched for comparison in comparisons)
    total = sum(comparison.expected + comparison.found for comparison in comparisons)
    return unmatched <= MAX_UNMATCHED * total
