"""Exported detectors find what the detector that they come from finds."""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.detectors import SMALL, config, save, small_predictor
from PIL import Image

from dgnet_cli.export_model import main
from dgnet_det.errors import UserError
from dgnet_det.export.exported import export_detector, load_detector
from dgnet_det.export.predictor import Detector, Predictor, tensors_of
from dgnet_det.modeling.observation import dynamic_graphs, record_decisions

SUFFIXES = (".onnx", ".ts")
predictor_of = cache(small_predictor)


def make_images() -> list[np.ndarray]:
    """Of different sizes and contents."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    dark = rng.integers(0, 60, (150, 80, 3), dtype=np.uint8)
    coarse = np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    return [noise, dark, coarse]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that exports a small detector, traced on the first of :func:`make_images` alone:
    its kind, the suffix of the file, and overrides."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def exported(kind: str, suffix: str, *opts: str) -> Path:
        path = folder / f"{kind}{len(list(folder.iterdir()))}{suffix}"
        example = torch.from_numpy(make_images()[0].transpose(2, 0, 1).copy())
        export_detector(predictor_of(kind, *opts), example, path)
        return path

    return exported


def assert_equal_detections(predictor: Predictor, exported: Detector) -> None:
    """Compare tensor by tensor, in order: without the allowances of compare_detections()."""
    for image in make_images():
        expected = tensors_of(predictor.inference(predictor.prepare(image)))
        got = tensors_of(exported.inference(exported.prepare(image)))
        assert list(got) == list(expected)
        assert len(expected["boxes"]) > 0
        assert torch.equal(got["classes"], expected["classes"])
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("wiring", "suffix"), [("paper", ".ts"), ("residual", ".onnx")])
def test_an_exported_detector_rewires_itself(
    wiring: str, suffix: str, export: Callable[..., Path]
) -> None:
    """Traced on the first image, it follows images of other α that close other edges."""
    opts = ("MODEL.DGNET.WIRING", wiring)
    predictor = predictor_of("faster", *opts)
    alphas = []
    with record_decisions(predictor.model) as edge_weights:
        for image in make_images():
            predictor(image)
            alphas.append(torch.cat([w.value.flatten() for w in edge_weights.values()]))
    assert all((other - alphas[0]).abs().max() > 0.1 for other in alphas[1:])
    assert any((other.ne(0) != alphas[0].ne(0)).any() for other in alphas[1:])
    assert_equal_detections(predictor, load_detector(export("faster", suffix, *opts)))


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("retinanet", ".onnx"), ("mask", ".onnx"), ("keypoint", ".onnx"), ("cascade", ".ts")],
)
def test_other_meta_architectures(kind: str, suffix: str, export: Callable[..., Path]) -> None:
    predictor = predictor_of(kind)
    before = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    exported = load_detector(export(kind, suffix))
    assert_equal_detections(predictor, exported)
    after = predictor.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    field = {"mask": "pred_masks", "keypoint": "pred_keypoints"}.get(kind)
    if field:
        image = make_images()[1]
        found, expected = exported(image).get(field), predictor(image).get(field)
        assert (found.float() - expected.float()).abs().gt(1e-2).float().mean() < 1e-3


RESIDUAL = ("MODEL.DGNET.WIRING", "residual")


def test_the_onnx_graph_has_the_routers_and_their_dynamic_inputs(
    export: Callable[..., Path],
) -> None:
    predictor = predictor_of("faster", *RESIDUAL)
    file = onnx.load(export("faster", ".onnx", *RESIDUAL))
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


def test_the_file_can_be_used_without_this_package(export: Callable[..., Path]) -> None:
    """As the documentation shows it: with onnxruntime, numpy and Pillow."""
    path = export("faster", ".onnx", *RESIDUAL)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["dgnet_det.json"])
    image = Image.fromarray(make_images()[1])
    assert facts["input_format"] == "RGB"
    scale = min(facts["min_size"] / min(image.size), facts["max_size"] / max(image.size))
    size = [int(side * scale + 0.5) for side in image.size]
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    boxes, scores, classes = session.run(["boxes", "scores", "classes"], {"image": pixels})
    boxes = boxes / (np.array(size * 2) / np.array(image.size * 2))

    predictor = predictor_of("faster", *RESIDUAL)
    assert facts["class_names"] == predictor.class_names
    expected = predictor(make_images()[1], "RGB")
    np.testing.assert_allclose(boxes, expected.pred_boxes.tensor, atol=0.01)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(classes, expected.pred_classes)


def test_files_that_are_no_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model\.pth: neither \.onnx nor \.ts: a checkpoint needs"):
        load_detector("model.pth")
    for suffix in SUFFIXES:
        path = tmp_path / f"x{suffix}"
        with pytest.raises(UserError, match=f"x{suffix}: no such file"):
            load_detector(path)
        path.write_bytes(b"nonsense")
        with pytest.raises(UserError, match=f"x{suffix}: no .* file that runs here: "):
            load_detector(path)
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(tmp_path / "other.ts"))
    with pytest.raises(UserError, match=r"other\.ts: not written by dgnet export"):
        load_detector(tmp_path / "other.ts")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed: pip install"):
        load_detector(tmp_path / "x.onnx")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model.pth`` and three images."""
    folder = tmp_path_factory.mktemp("made")
    save(predictor_of("faster"), str(folder / "model.pth"))
    (folder / "images").mkdir()
    for i, image in enumerate(make_images()):
        Image.fromarray(image).save(folder / f"images/{i}.png")
    return folder


def arguments(made: Path, output: Path, *opts: str) -> list[str]:
    file_format = {".onnx": "onnx", ".ts": "torchscript"}[output.suffix]
    return [
        "--input", str(made / "images"), "--config-file", config("faster"),
        "--format", file_format, "--output", str(output),
        *SMALL, "MODEL.WEIGHTS", str(made / "model.pth"), *opts,
    ]  # fmt: skip


def test_tool(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, report_file = tmp_path / "detector.onnx", tmp_path / "report.json"
    main(arguments(made, output, "--json", str(report_file)))
    assert f"{output} written" in capsys.readouterr().out
    report = json.loads(report_file.read_text())
    assert len(report["images"]) == 6
    assert report["alpha_spread"] > 0.1
    for compared in report["images"].values():
        assert compared["expected"] == compared["found"] > 0
        assert compared["differences"]["boxes"] < 0.01
    assert load_detector(output).class_names == predictor_of("faster").class_names


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS: empty"),
        (["MODEL.WEIGHTS", "no.pth"], "no.pth"),
        (["--input", "no"], "no: no such image or folder"),
        (["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.99"], "no detection in any of these images"),
        (["--format", "onnx"], None),
    ],
)
def test_mistakes(opts: list[str], message: str | None, made: Path, tmp_path: Path) -> None:
    error: type[BaseException] = SystemExit if message is None else UserError
    with pytest.raises(error, match=message):
        main(arguments(made, tmp_path / "x.ts", *opts))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_not_kept(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(predictor: Predictor, image: torch.Tensor, path: Path) -> None:
        bias = predictor.model.roi_heads.box_predictor.bbox_pred.bias  # type: ignore
        bias.data.add_(1.0)
        export_detector(predictor, image, path)
        bias.data.sub_(1.0)

    monkeypatch.setattr("dgnet_det.export.exported.export_detector", another)
    with pytest.raises(UserError, match="differs from the original"):
        main(arguments(made, tmp_path / "x.ts"))
    assert list(tmp_path.iterdir()) == []


def test_without_onnx(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="onnx is not installed: pip install onnx onnxruntime"):
        main(arguments(made, tmp_path / "x.onnx"))
    assert list(tmp_path.iterdir()) == []
