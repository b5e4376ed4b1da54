"""Detectors from the files that ``tools/export_model.py`` writes, or from any other."""

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
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
    exported = {".onnx": OnnxDetector, ".ts": TorchScriptDetector}.get(path.suffix)
    if exported:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return exported(path)
    if not config_file:
        raise UserError(f"{path}: neither .onnx nor .ts: a checkpoint needs its config file")
    predictor = load_predictor(load_cfg(config_file, [*opts, "MODEL.WEIGHTS", str(path)]))
    optimize_for_inference(predictor.model)
    return predictor


class TorchScriptDetector(Detector):
    """A detector from a TorchScript file, on the device it was exported on."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: ``tools/export_model.py`` did not write this file, or it does not load.
        """
        extra = {DESCRIPTION: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", category=FutureWarning)  # TorchScript is to end
                self._module = torch.jit.load(path, _extra_files=extra)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{path}: no TorchScript file that runs here: {one_line(error)}"
            ) from error
        super().__init__(_description(path, extra[DESCRIPTION]))

    @torch.no_grad()
    def inference(self, image: Tensor) -> Instances:
        """As :meth:`Detector.inference`."""
        device = next(self._module.parameters()).device
        names = list(self.description.tensors)[1:]
        tensors = dict(zip(names, self._module(image.to(device)), strict=True))
        return _instances(image, tensors)


class OnnxDetector(Detector):
    """A detector from an ONNX file, run by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: ``tools/export_model.py`` did not write this file, it does not load, or
                onnxruntime is not installed.
        """
        onnxruntime = import_onnx("onnxruntime")
        try:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception for each way of failing
            raise UserError(f"{path}: no ONNX file that runs here: {one_line(error)}") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        super().__init__(_description(path, properties.get(DESCRIPTION, "")))

    def inference(self, image: Tensor) -> Instances:
        """As :meth:`Detector.inference`."""
        names = list(self.description.tensors)[1:]
        arrays = self._session.run(names, {"image": image.numpy()})
        tensors = {name: torch.tensor(array) for name, array in zip(names, arrays, strict=True)}
        return _instances(image, tensors)


def import_onnx(name: str) -> Any:
    """Import ``onnx`` or ``onnxruntime``, which nothing but ONNX files needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed: pip install onnx onnxruntime") from error


def _description(path: Path, text: str) -> Description:
    try:
        return Description(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: not written by tools/export_model.py") from error


def _instances(image: Tensor, tensors: Mapping[str, Tensor]) -> Instances:
    """The opposite of :func:`.predictor.tensors_of`, with the keypoints that heat maps show."""
    found = Instances((image.shape[1], image.shape[2]), pred_boxes=Boxes(tensors["boxes"]))
    for name in tensors.keys() - {"boxes"}:
        found.set(TENSORS[name][0], tensors[name])
    if "heatmaps" in tensors:
        keypoints = heatmaps_to_keypoints(tensors["heatmaps"], tensors["boxes"])
        found.pred_keypoints = keypoints[:, :, [0, 1, 3]]  # x, y, logit, score
    return found
