"""Detectors from the files that ``tools/export_model.py`` writes, or from any other."""

import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  registers the operators of exported detectors
from detectron2.structures import Boxes, Instances
from detectron2.structures.keypoints import heatmaps_to_keypoints
from torch import Tensor

from dgnet_det.config import load_cfg, one_line
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import TENSORS, Description, Detector, load_predictor
from dgnet_det.modeling.folding import optimize_for_inference

# Under this name an exported file holds its Description, as JSON.
DESCRIPTION = "dgnet_det.json"


class ExportedDetector(Detector):
    """A detector from a file of ``tools/export_model.py``."""

    def __init__(self, run: Callable[[Tensor], Sequence[Tensor]], description: Description) -> None:
        """
        Args:
            run: maps a prepared image to the outputs that the description names.
            description: of the file.
        """
        super().__init__(description)
        self.run = run

    def inference(self, image: Tensor) -> Instances:
        """As :meth:`Detector.inference`, with the keypoints that heat maps show."""
        tensors = dict(zip(list(self.description.tensors)[1:], self.run(image), strict=True))
        found = Instances((image.shape[1], image.shape[2]), pred_boxes=Boxes(tensors["boxes"]))
        for name in tensors.keys() - {"boxes"}:
            found.set(TENSORS[name][0], tensors[name])
        if "heatmaps" in tensors:
            keypoints = heatmaps_to_keypoints(tensors["heatmaps"], tensors["boxes"])
            found.pred_keypoints = keypoints[:, :, [0, 1, 3]]  # x, y, logit, score
        return found


def load_detector(
    path: str | PathLike[str], config_file: str = "", opts: Sequence[str] = ()
) -> Detector:
    """Load a detector for inference.

    Args:
        path: a file of ``tools/export_model.py``: ``.onnx``, which runs on the CPU, or ``.ts``,
            which runs on the device it was exported on. Anything else is a checkpoint.
        config_file: YAML of a checkpoint's detector, such as the ``config.yaml`` beside it.
        opts: overrides of that config, ``["KEY", "VALUE", …]``.

    Raises:
        UserError: the file is missing or cannot be used, or as :func:`load_predictor`.
    """
    path = Path(path)
    load = {".onnx": _load_onnx, ".ts": _load_torchscript}.get(path.suffix)
    if load:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        run, text = load(path)
        try:
            return ExportedDetector(run, Description(**json.loads(text)))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: not written by tools/export_model.py") from error
    if not config_file:
        raise UserError(f"{path}: neither .onnx nor .ts: a checkpoint needs its config file")
    predictor = load_predictor(load_cfg(config_file, [*opts, "MODEL.WEIGHTS", str(path)]))
    optimize_for_inference(predictor.model)
    return predictor


def _load_torchscript(path: Path) -> tuple[Callable[[Tensor], Sequence[Tensor]], str]:
    """A function that runs the file, and its description."""
    extra = {DESCRIPTION: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)  # TorchScript is to end one day
            module = torch.jit.load(path, _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: no TorchScript file that runs here: {one_line(error)}") from error

    @torch.no_grad()
    def run(image: Tensor) -> Sequence[Tensor]:
        return module(image.to(next(module.parameters()).device))

    return run, extra[DESCRIPTION]


def _load_onnx(path: Path) -> tuple[Callable[[Tensor], Sequence[Tensor]], str]:
    """As :func:`_load_torchscript`."""
    onnxruntime = import_onnx("onnxruntime")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception for each way of failing
        raise UserError(f"{path}: no ONNX file that runs here: {one_line(error)}") from error

    def run(image: Tensor) -> Sequence[Tensor]:
        return [torch.tensor(array) for array in session.run(None, {"image": image.numpy()})]

    return run, session.get_modelmeta().custom_metadata_map.get(DESCRIPTION, "")


def import_onnx(name: str) -> Any:
    """Import ``onnx`` or ``onnxruntime``, which nothing but ONNX files needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed: pip install onnx onnxruntime") from error
