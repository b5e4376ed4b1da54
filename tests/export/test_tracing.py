"""Exported detectors find what the detector that they come from finds."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectors import META_ARCHITECTURES, SMALL, config, save, small_predictor
from PIL import Image

from configs import ROOT
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import (
    Description,
    Detector,
    Predictor,
    load_detector,
    run_model,
)
from dgnet_det.export.tracing import SUFFIXES, Comparison, compare, export_detector, fits
from dgnet_det.modeling.observation import dynamic_graphs, record_wiring

TOOL = str(ROOT / "tools/export_model.py")


def make_images() -> list[np.ndarray]:
    """Of different sizes and contents."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    dark = rng.integers(0, 60, (150, 80, 3), dtype=np.uint8)
    coarse = np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    return [noise, dark, coarse]


def export(predictor: Predictor, file_format: str, folder: Path) -> Path:
    """Trace a detector on the first of :func:`make_images` alone, as it is."""
    path = folder / f"detector{SUFFIXES[file_format]}"
    example = torch.from_numpy(make_images()[0].transpose(2, 0, 1).copy())
    export_detector(predictor, example, file_format, path)
    return path


def assert_equal_detections(predictor: Predictor, exported: Detector) -> None:
    """Compare tensor by tensor, in order: without the allowances of ``compare``."""
    for image in make_images():
        prepared = exported.prepare(image)
        with torch.no_grad():
            expected = run_model(predictor.model, prepared)
        got = exported.run(prepared)
        assert list(got) == list(expected)
        assert len(expected["boxes"]) > 0
        assert torch.equal(got["classes"], expected["classes"])
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("file_format", SUFFIXES)
@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_an_exported_detector_rewires_itself(wiring: str, file_format: str, tmp_path: Path) -> None:
    """Traced on the first image, it follows images of other α that close other edges."""
    predictor = small_predictor("faster", "MODEL.DGNET.WIRING", wiring)
    alphas = []
    with record_wiring(predictor.model) as wirings:
        for image in make_images():
            predictor(image)
            alphas.append(torch.cat([w.alpha.flatten() for w in wirings.values()]))
    assert all((other - alphas[0]).abs().max() > 0.1 for other in alphas[1:])
    assert any((other.ne(0) != alphas[0].ne(0)).any() for other in alphas[1:])
    exported = load_detector(export(predictor, file_format, tmp_path))
    assert_equal_detections(predictor, exported)


@pytest.mark.parametrize("file_format", SUFFIXES)
@pytest.mark.parametrize("kind", [kind for kind in META_ARCHITECTURES if kind != "faster"])
def test_every_meta_architecture(kind: str, file_format: str, tmp_path: Path) -> None:
    predictor = small_predictor(kind)
    before = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    exported = load_detector(export(predictor, file_format, tmp_path))
    assert_equal_detections(predictor, exported)
    after = predictor.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_onnx_graph_has_the_routers_and_their_dynamic_inputs(tmp_path: Path) -> None:
    predictor = small_predictor("faster")
    path = export(predictor, "onnx", tmp_path)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    graph = file.graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    routers = [
        router.linear.weight.detach().numpy()
        for graph_ in dynamic_graphs(predictor.model).values()
        for router in graph_.routers.values()
    ]
    assert len(routers) > 10
    for weight in routers:
        (name,) = (
            n for n, c in constants.items() if c.shape == weight.shape and np.array_equal(c, weight)
        )
        gemm = readers[name]
        assert gemm.op_type == "Gemm"
        assert gemm.input[0] not in constants  # the average of the image's own features
        assert readers[gemm.output[0]].op_type == "Sigmoid"

    def shape(value: onnx.ValueInfoProto) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {value.name: shape(value) for value in [*graph.input, *graph.output]} == {
        "image": [3, "height", "width"],
        "boxes": ["detections", 4],
        "scores": ["detections"],
        "classes": ["detections"],
    }
    (description,) = (p for p in file.metadata_props if p.key == "dgnet_det.json")
    assert json.loads(description.value)["input_format"] == "RGB"


def fixed(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Detector:
    """A detector that always finds the same."""
    found = {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "classes": torch.tensor(classes, dtype=torch.int64),
    }
    return Detector(lambda image: found, Description(["a", "b"], "BGR", 0, 0, {}))


def test_comparison() -> None:
    image = make_images()[0]
    box, other = [1.0, 2.0, 30.0, 40.0], [50.0, 50.0, 60.0, 70.0]
    both = fixed([box, other], [0.9, 0.8], [0, 1])
    swapped = fixed([other, [1.0, 2.0, 30.05, 40.0]], [0.8, 0.9005], [1, 0])
    result = compare(both, swapped, image)
    assert result[:3] == (2, 2, 0)
    assert result.differences == pytest.approx({"boxes": 0.05, "scores": 0.0005}, rel=1e-3)
    assert fits([result])
    for different, lone in (
        (fixed([box, other], [0.9, 0.8], [0, 0]), 2),  # another class
        (fixed([box], [0.9], [0]), 1),  # one is missing
        (fixed([], [], []), 2),
        (fixed([box, box], [0.9, 0.9], [0, 0]), 2),  # one twice
        (fixed([box, [51.0, 50.0, 60.0, 70.0]], [0.9, 0.8], [0, 1]), 2),
        (fixed([box, other], [0.9, 0.81], [0, 1]), 2),
    ):
        assert compare(both, different, image).lone == lone
    assert not fits([Comparison(20, 19, 1, {}), Comparison(0, 0, 0, {})])
    assert fits([Comparison(100, 99, 1, {})])


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_tool(tmp_path: Path) -> None:
    predictor = small_predictor("faster")
    checkpoint, output = tmp_path / "model.pth", tmp_path / "detector.onnx"
    save(predictor, str(checkpoint))
    (tmp_path / "images").mkdir()
    for i, image in enumerate(make_images()):
        Image.fromarray(image).save(tmp_path / f"images/{i}.png")
    opts = [*SMALL, "MODEL.WEIGHTS", str(checkpoint)]
    result = run_tool(
        "--input", str(tmp_path / "images"), "--config-file", config("faster"), "--format", "onnx",
        "--output", str(output), "--json", str(tmp_path / "report.json"), *opts,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert f"{output} written" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["images"]) == 6
    assert report["alpha_spread"] > 0.1
    for compared in report["images"].values():
        assert compared["expected"] == compared["exported"] > 0
        assert compared["differences"]["boxes"] < 0.01

    # Without this package, as the documentation shows it.
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["dgnet_det.json"])
    assert (
        facts["class_names"] == load_detector(str(checkpoint), config("faster"), opts).class_names
    )
    image = Image.open(tmp_path / "images/1.png").convert("RGB")
    scale = min(facts["min_size"] / min(image.size), facts["max_size"] / max(image.size))
    size = [int(side * scale + 0.5) for side in image.size]
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    boxes, scores, classes = session.run(["boxes", "scores", "classes"], {"image": pixels})
    boxes = boxes / (np.array(size * 2) / np.array(image.size * 2))

    expected = load_detector(str(checkpoint), config("faster"), opts)(make_images()[1], "RGB")
    np.testing.assert_allclose(boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(classes, expected.classes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--output", "{}/x.ts"], "ends in .onnx"),
        (["--format", "torchscript", "--output", "{}/x.ts"], "MODEL.WEIGHTS: empty"),
        (
            ["--format", "onnx", "--output", "{}/x.onnx", "MODEL.WEIGHTS", "{}/no.pth"],
            "no.pth",
        ),
        (
            ["--format", "onnx", "--output", "{}/x.onnx", "--input", "{}/no", "MODEL.WEIGHTS", "x"],
            "no: no such image or folder",
        ),
    ],
    ids=["suffix", "no weights", "missing weights", "missing image"],
)  # fmt: skip
def test_mistakes(arguments: list[str], message: str, tmp_path: Path) -> None:
    arguments = [argument.format(tmp_path) for argument in arguments]
    opts = SMALL[:2] + (["MODEL.WEIGHTS", ""] if "MODEL.WEIGHTS" not in arguments else [])
    main = runpy.run_path(TOOL)["main"]
    with pytest.raises(UserError, match=message):
        main(["--config-file", config("faster"), *arguments, *opts])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["weights", "half the weights", "no detections", "no onnx"])
def test_nothing_is_left_of_an_export_that_failed(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = small_predictor("faster")
    save(predictor, str(tmp_path / "model.pth"))
    Image.fromarray(make_images()[0]).save(tmp_path / "0.png")
    opts = [*SMALL, "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    main = runpy.run_path(TOOL)["main"]
    if fault == "weights":

        def another(predictor: Predictor, image: torch.Tensor, *args: object) -> None:
            head = predictor.model.roi_heads.box_predictor.bbox_pred
            with torch.no_grad():
                head.bias.add_(1.0)
            export_detector(predictor, image, *args)
            with torch.no_grad():
                head.bias.sub_(1.0)

        monkeypatch.setitem(main.__globals__, "export_detector", another)
        message = "differs from the original"
    elif fault == "half the weights":
        state = predictor.model.state_dict()
        kept = {name: tensor for name, tensor in state.items() if "roi_heads" not in name}
        torch.save({"model": kept}, tmp_path / "model.pth")
        message = r"roi_heads\..* missing or of another shape: this needs the checkpoint of a whole"
    elif fault == "no detections":
        opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.99"]
        message = "no detection in any of these images"
    else:
        monkeypatch.setitem(sys.modules, "onnx", None)
        message = "onnx is not installed: pip install onnx onnxruntime"
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        main(
            ["--input", str(tmp_path / "0.png"), "--config-file", config("faster"),
             "--format", "onnx", "--output", str(tmp_path / "x.onnx"), *opts]
        )  # fmt: skip
    assert set(tmp_path.iterdir()) == before
