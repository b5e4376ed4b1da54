"""Detectors as TorchScript and ONNX files, and their comparison with the model they come from."""

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.export import TracingAdapter
from detectron2.structures import Instances
from torch import Tensor, nn

from dgnet_det.export.predictor import (
    DESCRIPTION,
    Description,
    Detector,
    Predictor,
    import_onnx,
    run_model,
)
from dgnet_det.modeling.folding import optimize_for_inference

# The file names' endings, by which :func:`.inference.load_detector` knows the formats.
SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts"}
# The first whose RoiAlign has the half-pixel shift of Detectron2's ROIAlignV2.
ONNX_OPSET = 16

# By how much a detection may change on export. Boxes are in pixels of the resized image.
TOLERANCES = {"boxes": 0.1, "scores": 1e-3, "masks": 1e-2, "heatmaps": 1e-2}
# Rounding decides whether a detection at the score threshold, or one beside a better one, is kept.
# So a hundredth of them may be on one side alone.
LONE_SHARE = 0.01


def export_detector(predictor: Predictor, image: Tensor, file_format: str, path: Path) -> None:
    """Write a detector's whole computation for one image of any size to a file.

    Input and outputs are those of :func:`.inference.run_model`; the names of the tensors and how to
    prepare an image are in the file, see :class:`.inference.Description`. Norms are folded into the
    convolutions. Routers, thresholds and sums are in the graph, which computes every node, also
    behind closed edges.

    Args:
        predictor: the detector. It is left as it was.
        image: an example to trace, as :meth:`.inference.Detector.prepare` makes it.
        file_format: ``onnx``, or ``torchscript``, whose file keeps to the model's device.
        path: to write.

    Raises:
        UserError: ONNX is not installed.
    """
    description = Description.of(predictor)
    text = json.dumps(description._asdict())
    model: Any = optimize_for_inference(copy.deepcopy(predictor.model))
    if predictor.cfg.MODEL.KEYPOINT_ON:
        _end_at_heatmaps(model.roi_heads.keypoint_head)
    adapter = TracingAdapter(
        model, image.to(predictor.model.device), inference_func=_outputs
    ).eval()
    with _without_tracer_warnings():
        if file_format == "torchscript":
            traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
            torch.jit.save(traced, path, _extra_files={DESCRIPTION: text})
        else:
            _write_onnx(adapter, list(description.tensors), text, path)


def _outputs(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    return tuple(run_model(model, image).values())


def _end_at_heatmaps(head: Any) -> None:
    """Leave out the search for the heat maps' maxima, object by object: ONNX cannot express it."""

    def forward(x: Tensor, instances: list[Instances]) -> list[Instances]:
        instances[0].pred_keypoint_heatmaps = head.layers(x)
        return instances

    head.forward = forward


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
    """Detectron2's tracing is meant as it is; :func:`compare` sees what went wrong."""
    with warnings.catch_warnings():
        for kind in (torch.jit.TracerWarning, FutureWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", category=kind)
        yield


class Comparison(NamedTuple):
    """Of one image's detections."""

    expected: int
    exported: int
    lone: int  # on one side alone, out of both sides
    # The largest differences of the others, for each of the outputs but the classes.
    differences: dict[str, float]


def compare(expected: Detector, exported: Detector, image: np.ndarray) -> Comparison:
    """Compare what two detectors find in an image, [H, W, 3] uint8 BGR.

    Two detections of one class are the same if each is the other's nearest, within
    :data:`TOLERANCES`.
    """
    a, b = (
        {name: x.cpu().flatten(1) if x.dim() > 1 else x.cpu()[:, None] for name, x in found.items()}
        for found in (detector.run(detector.prepare(image)) for detector in (expected, exported))
    )
    num = len(a["boxes"]), len(b["boxes"])
    compared = [name for name in TOLERANCES if name in a]
    if 0 in num:
        return Comparison(*num, sum(num), dict.fromkeys(compared, 0.0))
    apart = {name: (a[name][:, None] - b[name]).abs().amax(dim=2) for name in compared}
    distance = torch.stack([apart[name] / TOLERANCES[name] for name in compared]).amax(dim=0)
    distance[a["classes"] != b["classes"].T] = torch.inf
    rows, nearest = torch.arange(num[0]), distance.argmin(dim=1)
    same = (distance[rows, nearest] <= 1) & (distance.argmin(dim=0)[nearest] == rows)
    differences = {name: x[rows, nearest][same] for name, x in apart.items()}
    return Comparison(
        *num,
        lone=sum(num) - 2 * int(same.sum()),
        differences={name: max(x.tolist(), default=0.0) for name, x in differences.items()},
    )


def fits(comparisons: Sequence[Comparison]) -> bool:
    """Whether an exported detector finds what the other one does."""
    lone = sum(comparison.lone for comparison in comparisons)
    total = sum(comparison.expected + comparison.exported for comparison in comparisons)
    return lone <= LONE_SHARE * total
