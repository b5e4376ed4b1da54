"""A trained detector, or an exported one, for one image at a time."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision  # noqa: F401  registers the operators of exported detectors
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine.defaults import DefaultPredictor
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.structures.keypoints import heatmaps_to_keypoints
from torch import Tensor, nn

from dgnet_det.checkpoint import (
    DGNetCheckpointer,
    WholeCheckpointer,
    class_names_in,
    saved_class_names,
)
from dgnet_det.config import load_cfg, one_line
from dgnet_det.data.classes import class_names, set_num_classes
from dgnet_det.errors import UserError
from dgnet_det.modeling.build import config_errors_in_one_line
from dgnet_det.modeling.folding import optimize_for_inference

# Under this name an exported file holds its :class:`Description`, in JSON.
DESCRIPTION = "dgnet_det.json"

# A detector's outputs for one image, in this order: Detectron2's name, and what it is. The last two
# are those of Mask R-CNN and Keypoint R-CNN alone.
OUTPUTS = {
    "boxes": ("pred_boxes", "float32 [N, 4], left, top, right, bottom in pixels of the input"),
    "scores": ("scores", "float32 [N], the best first"),
    "classes": ("pred_classes", "int64 [N], places in class_names, from 0"),
    "masks": ("pred_masks", "float32 [N, 1, S, S], probabilities on a grid over the box"),
    "heatmaps": (
        "pred_keypoint_heatmaps",
        "float32 [N, K, S, S], logits of each keypoint on a grid over the box",
    ),
}


class Predictor(DefaultPredictor):
    """Detectron2's, which knows the names of its classes."""

    class_names: list[str]


def load_predictor(cfg: CfgNode, *, whole: bool = False) -> Predictor:
    """Detectron2's :class:`DefaultPredictor`, which takes [H, W, 3] BGR images, with
    ``MODEL.WEIGHTS`` loaded by :class:`DGNetCheckpointer`. The number of classes is the weights',
    where they were saved with the names of theirs.

    Args:
        cfg: the config.
        whole: whether the weights must be the whole detector's. What is missing is random else.

    Raises:
        UserError: the config describes no model, or the weights do not fit it.
    """
    cfg = cfg.clone()
    cfg.defrost()
    weights, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""
    if saved := class_names_in(weights):
        set_num_classes(cfg, len(saved))
    with config_errors_in_one_line():
        predictor = Predictor(cfg)
    needed = "the checkpoint of a whole detector, such as model_final.pth"
    checkpointer = (
        WholeCheckpointer(predictor.model, needed=needed)
        if whole
        else DGNetCheckpointer(predictor.model)
    )
    checkpoint = checkpointer.load(weights)
    if checkpointer.misshaped:
        raise UserError(
            f"MODEL.WEIGHTS {weights}: {checkpointer.misshaped[0]} is of another shape than the"
            " config's: give the config, with its number of classes, that the weights are of"
        )
    predictor.class_names = saved_class_names(checkpoint) or class_names(cfg)
    return predictor


class Detections(NamedTuple):
    """What a detector found in an image [H, W, 3], best first."""

    # [K, 4] float32: left, top, right, bottom, pixels of the image as it was given.
    boxes: np.ndarray
    scores: np.ndarray  # [K] float32
    classes: np.ndarray  # [K] int64
    class_names: list[str]  # K
    masks: np.ndarray | None = None  # [K, H, W] bool, of a detector with a mask head
    # [K, number of keypoints, 3] float32: x, y, score, of a detector with a keypoint head
    keypoints: np.ndarray | None = None


class Description(NamedTuple):
    """How to use a detector: what an exported file says of itself."""

    class_names: list[str]
    input_format: str  # "RGB" or "BGR"
    # Images are resized, bilinearly with antialiasing as Pillow does it, until their shorter side
    # has min_size pixels, or until their longer side has max_size where that is less. 0: not at
    # all.
    min_size: int
    max_size: int
    tensors: dict[str, str]  # the input and the outputs in their order, in words

    @classmethod
    def of(cls, predictor: Predictor) -> "Description":
        """Of a detector that is not exported yet."""
        cfg = predictor.cfg
        names = ["boxes", "scores", "classes"]
        names += ["masks"] if cfg.MODEL.MASK_ON else []
        names += ["heatmaps"] if cfg.MODEL.KEYPOINT_ON else []
        tensors = {"image": f"uint8 [3, height, width], {cfg.INPUT.FORMAT}, resized"}
        tensors |= {name: OUTPUTS[name][1] for name in names}
        sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        return cls(predictor.class_names, cfg.INPUT.FORMAT, *sizes, tensors)

    @classmethod
    def from_json(cls, path: Path, text: str) -> "Description":
        """Of the file ``path``, which holds ``text``.

        Raises:
            UserError: the file is none that this project wrote.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: not written by tools/export_model.py") from error


class Detector:
    """A detector from whatever file, on numpy images."""

    def __init__(
        self, run: Callable[[Tensor], Mapping[str, Tensor]], description: Description
    ) -> None:
        """
        Args:
            run: maps a resized image, uint8 [3, H, W] in the description's ``input_format``, to
                some of :data:`OUTPUTS`.
            description: what goes with it.
        """
        self.run = run
        self.description = description
        self._resize = ResizeShortestEdge([description.min_size] * 2, description.max_size)

    @property
    def class_names(self) -> list[str]:
        """The names of all classes."""
        return self.description.class_names

    def prepare(self, image: np.ndarray, image_format: str = "BGR") -> Tensor:
        """What ``run`` takes, for an image as :meth:`__call__` takes it."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"an image of shape {list(image.shape)}, {image.dtype}: give [height, width, 3],"
                " uint8"
            )
        if image_format not in ("BGR", "RGB"):
            raise UserError(f"image_format {image_format!r}: choose BGR or RGB")
        if image_format != self.description.input_format:
            image = image[:, :, ::-1]
        resized = self._resize.get_transform(image).apply_image(image)
        return torch.tensor(resized.transpose(2, 0, 1).copy())

    def __call__(self, image: np.ndarray, image_format: str = "BGR") -> Detections:
        """
        Args:
            image: [H, W, 3], uint8, of any size.
            image_format: ``BGR``, as OpenCV and Detectron2 read images, or ``RGB``.

        Raises:
            UserError: no such image.
        """
        prepared = self.prepare(image, image_format)
        found = self.run(prepared)
        instances = Instances(tuple(prepared.shape[1:]), pred_boxes=Boxes(found["boxes"]))
        for name in found.keys() - {"boxes", "heatmaps"}:
            instances.set(OUTPUTS[name][0], found[name])
        if "heatmaps" in found:
            # x, y, logit, score
            keypoints = heatmaps_to_keypoints(found["heatmaps"], found["boxes"])
            instances.pred_keypoints = keypoints[:, :, [0, 1, 3]]
        instances = detector_postprocess(instances, *image.shape[:2]).to("cpu")
        arrays = {
            name: field.numpy()
            for name, field in instances.get_fields().items()
            if name != "pred_boxes"
        }
        return Detections(
            boxes=instances.pred_boxes.tensor.numpy(),
            scores=arrays["scores"],
            classes=arrays["pred_classes"],
            class_names=[self.class_names[k] for k in arrays["pred_classes"]],
            masks=arrays.get("pred_masks"),
            keypoints=arrays.get("pred_keypoints"),
        )


def run_model(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Detect in one image, on the way from Detectron2's structures to tensors.

    Args:
        model: a ``GeneralizedRCNN`` or ``RetinaNet``, in evaluation mode.
        image: [3, H, W], resized, in the model's ``INPUT.FORMAT``.

    Returns:
        Those of :data:`OUTPUTS` that the model has.
    """
    if isinstance(model, GeneralizedRCNN):
        (instances,) = model.inference([{"image": image}], do_postprocess=False)
    else:
        instances = model([{"image": image}])[0]["instances"]
    instances = instances[instances.pred_boxes.nonempty()]
    return {
        name: instances.pred_boxes.tensor if name == "boxes" else instances.get(field)
        for name, (field, _) in OUTPUTS.items()
        if instances.has(field)
    }


def detector_of(predictor: Predictor) -> Detector:
    """A predictor's model, to which :func:`optimize_for_inference` is done, as a
    :class:`Detector`."""
    model = optimize_for_inference(predictor.model)

    def run(image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return run_model(model, image)

    return Detector(run, Description.of(predictor))


def load_detector(
    path: str | PathLike[str], config_file: str = "", opts: Sequence[str] = ()
) -> Detector:
    """Load a detector.

    Args:
        path: written by ``tools/export_model.py``: ``.onnx``, which runs on a CPU, or ``.ts``,
            which runs on the device it was exported on; else a checkpoint.
        config_file: YAML of a checkpoint's detector, such as ``config.yaml`` beside it.
        opts: overrides of the config, ``["KEY", "VALUE", …]``.

    Raises:
        UserError: the file is missing or cannot be used, or as :func:`load_predictor`.
    """
    path = Path(path)
    exported = {".onnx": _load_onnx, ".ts": _load_torchscript}
    if path.suffix not in exported:
        if not config_file:
            raise UserError(f"{path}: neither .onnx nor .ts: a checkpoint needs its config file")
        cfg = load_cfg(config_file, ["MODEL.WEIGHTS", str(path), *opts])
        return detector_of(load_predictor(cfg, whole=True))
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return exported[path.suffix](path)


def _load_torchscript(path: Path) -> Detector:
    extra = {DESCRIPTION: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)  # TorchScript is to end one day
            module = torch.jit.load(path, _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: no TorchScript file that runs here: {one_line(error)}") from error
    description = Description.from_json(path, extra[DESCRIPTION])
    device = next(module.parameters()).device
    names = list(description.tensors)[1:]

    def run(image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(names, module(image.to(device)), strict=True))

    return Detector(run, description)


def _load_onnx(path: Path) -> Detector:
    onnxruntime = import_onnx("onnxruntime")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # a kind of its own for each way in which it fails
        raise UserError(f"{path}: no ONNX file that runs here: {one_line(error)}") from error
    properties = session.get_modelmeta().custom_metadata_map
    description = Description.from_json(path, properties.get(DESCRIPTION, ""))
    names = list(description.tensors)[1:]

    def run(image: Tensor) -> dict[str, Tensor]:
        arrays = session.run(names, {"image": image.numpy()})
        return {name: torch.tensor(array) for name, array in zip(names, arrays, strict=True)}

    return Detector(run, description)


def import_onnx(name: str) -> Any:
    """The package ``onnx`` or ``onnxruntime``, which nothing else needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return __import__(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed: pip install onnx onnxruntime") from error
