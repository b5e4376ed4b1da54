"""Detectors written as TorchScript and ONNX files."""

import copy
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.export import TracingAdapter
from detectron2.structures import Instances
from torch import Tensor, nn

from dgnet_det.export.exported import DESCRIPTION, import_onnx
from dgnet_det.export.predictor import Predictor, run_model, tensors_of
from dgnet_det.modeling.folding import optimize_for_inference

# The first whose RoiAlign has the half-pixel shift of Detectron2's ROIAlignV2.
ONNX_OPSET = 16


def export_detector(predictor: Predictor, image: Tensor, path: Path) -> None:
    """Write a detector's whole computation for one image of any size to a file.

    The input and the outputs are described in :data:`.predictor.TENSORS`, and in the file itself by
    a :class:`.predictor.Description`. Norms are folded into the convolutions. Routers, thresholds
    and sums are part of the file, which computes every node, also behind closed edges.

    Args:
        predictor: the detector. It is left as it was.
        image: an example to trace, as :meth:`Detector.prepare` makes it.
        path: to write: ``.onnx``, or ``.ts`` for TorchScript, whose file keeps to the model's
            device.

    Raises:
        UserError: ONNX is not installed.
    """
    text = json.dumps(predictor.description._asdict())
    model: Any = optimize_for_inference(copy.deepcopy(predictor.model))
    if predictor.cfg.MODEL.KEYPOINT_ON:
        model.roi_heads.keypoint_head = _HeatmapHead(model.roi_heads.keypoint_head)
    image = image.to(next(model.parameters()).device)
    adapter = TracingAdapter(model, image, inference_func=_traced_inference).eval()
    with _without_tracer_warnings():
        if path.suffix == ".ts":
            traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
            # Where the disk is full, PyTorch's own way of writing ends the process.
            content = io.BytesIO()
            torch.jit.save(traced, content, _extra_files={DESCRIPTION: text})
            path.write_bytes(content.getvalue())
        else:
            _write_onnx(adapter, list(predictor.description.tensors), text, path)


class _HeatmapHead(nn.Module):
    """A keypoint head that ends at its heat maps: ONNX cannot express Detectron2's search for their
    maxima, object by object."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        instances[0].pred_keypoint_heatmaps = self.head.layers(x)
        return instances


def _traced_inference(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensors_of(run_model(model, image)).values())


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


@contextmanager
def _without_tracer_warnings() -> Iterator[None]:
    """Detectron2's models raise dozens of them. The comparison of the file with the detector shows
    whether one was right."""
    with warnings.catch_warnings():
        for kind in (torch.jit.TracerWarning, FutureWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", category=kind)
        yield
