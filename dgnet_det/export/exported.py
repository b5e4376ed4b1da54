"""Detectors as ONNX and TorchScript files."""

import copy
import importlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  registers the operators of exported detectors
from detectron2.export import TracingAdapter
from detectron2.structures import Boxes, Instances
from detectron2.structures.keypoints import heatmaps_to_keypoints
from torch import Tensor, nn

from dgnet_det.config import load_cfg, one_line
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import (
    TENSORS,
    Description,
    Detector,
    Predictor,
    load_predictor,
    run_model,
    tensors_of,
)
from dgnet_det.modeling.folding import optimize_for_inference

Run = Callable[[Tensor], Sequence[Tensor]]  # from a prepared image to an exported file's outputs

DESCRIPTION = "dgnet_det.json"  # the name of the Description in an exported file
ONNX_OPSET = 16  # the first whose RoiAlign has the half-pixel shift of Detectron2's ROIAlignV2


def load_detector(
    path: str | PathLike[str], config_file: str = "", opts: Sequence[str] = ()
) -> Detector:
    """Load a detector for inference.

    Args:
        path: a file of ``dgnet export``, ``.onnx``, which runs on the CPU, or ``.ts``, which runs
            on the device it was exported on; or a checkpoint.
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
            description = Description(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: not written by dgnet export") from error
        return Detector(partial(_detect, run, list(description.tensors)[1:]), description)
    if not config_file:
        raise UserError(f"{path}: neither .onnx nor .ts: a checkpoint needs its config file")
    predictor = load_predictor(load_cfg(config_file, [*opts, "MODEL.WEIGHTS", str(path)]))
    optimize_for_inference(predictor.model)
    return predictor


def _detect(run: Run, outputs: Sequence[str], image: Tensor) -> Instances:
    """Run a file of these ``outputs`` on a prepared image, and find keypoints in heat maps."""
    tensors = dict(zip(outputs, run(image), strict=True))
    found = Instances((image.shape[1], image.shape[2]), pred_boxes=Boxes(tensors["boxes"]))
    for name in tensors.keys() - {"boxes"}:
        found.set(TENSORS[name][0], tensors[name])
    if "heatmaps" in tensors:
        keypoints = heatmaps_to_keypoints(tensors["heatmaps"], tensors["boxes"])
        found.pred_keypoints = keypoints[:, :, [0, 1, 3]]  # x, y, logit, score
    return found


def _load_torchscript(path: Path) -> tuple[Run, str]:
    """Return a function that runs the file, and the file's description."""
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


def _load_onnx(path: Path) -> tuple[Run, str]:
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


def export_detector(predictor: Predictor, image: Tensor, path: Path) -> None:
    """Write a detector's whole computation for one image of any size to a file.

    :data:`.predictor.TENSORS` and the :class:`.predictor.Description` in the file describe its
    input and outputs. Norms are folded into the convolutions. The file routes as the model does,
    but computes every node, also behind closed edges.

    Args:
        predictor: the detector, which is left as it was.
        image: an example to trace, as :meth:`Detector.prepare` makes it.
        path: the new file, ``.onnx``, or ``.ts`` for TorchScript on the model's device.

    Raises:
        UserError: ONNX is not installed.
    """
    text = json.dumps(predictor.description._asdict())
    model: Any = optimize_for_inference(copy.deepcopy(predictor.model))
    if predictor.cfg.MODEL.KEYPOINT_ON:
        model.roi_heads.keypoint_head = _HeatmapHead(model.roi_heads.keypoint_head)
    image = image.to(next(model.parameters()).device)
    adapter = TracingAdapter(
        model, image, inference_func=lambda *args: tuple(tensors_of(run_model(*args)).values())
    ).eval()
    # Tracing warns dozens of times. Comparing the file with the detector shows what matters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".ts":
            traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
            # Where the disk is full, PyTorch's own way of writing ends the process.
            content = io.BytesIO()
            torch.jit.save(traced, content, _extra_files={DESCRIPTION: text})
            path.write_bytes(content.getvalue())
        else:
            _write_onnx(adapter, list(predictor.description.tensors), text, path)


class _HeatmapHead(nn.Module):
    """A keypoint head that ends at its heat maps, whose maxima ONNX cannot search for."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        instances[0].pred_keypoint_heatmaps = self.head.layers(x)
        return instances


def _write_onnx(adapter: TracingAdapter, names: list[str], text: str, path: Path) -> None:
    onnx = import_onnx("onnx")
    torch.onnx.export(
        adapter,
        adapter.flattened_inputs,
        path,
        dynamo=False,  # the other exporter does not take Detectron2's models
        opset_version=ONNX_OPSET,
        input_names=names[:1],
        output_names=names[1:],
        dynamic_axes={
            names[0]: {1: "height", 2: "width"},
            **{name: {0: "detections"} for name in names[1:]},
        },
    )
    file = onnx.load(path)
    file.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4  # the exporter lost it
    onnx.helper.set_model_props(file, {DESCRIPTION: text})
    onnx.save(file, path)
