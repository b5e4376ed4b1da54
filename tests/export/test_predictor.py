"""Detectors on numpy images, whatever file they are loaded from."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import SMALL, config, save, small_predictor
from PIL import Image

from configs import ROOT
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import Detections, detector_of, load_detector
from dgnet_det.export.tracing import export_detector


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["faster", "retinanet", "mask", "keypoint", "cascade"])
def test_detections_are_those_of_detectron2s_predictor(kind: str, image: np.ndarray) -> None:
    predictor = small_predictor(kind)
    expected = predictor(image)["instances"]
    found = detector_of(predictor)(image)
    assert len(expected) > 0
    np.testing.assert_allclose(found.boxes, expected.pred_boxes.tensor, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    np.testing.assert_array_equal(found.classes, expected.pred_classes)
    names = predictor.class_names
    assert found.class_names == [names[k] for k in expected.pred_classes]
    assert (found.masks is not None) == expected.has("pred_masks") == (kind in ("mask", "cascade"))
    if found.masks is not None:
        assert found.masks.shape == (len(expected), 120, 90)
        assert (found.masks != expected.pred_masks.numpy()).mean() < 1e-3
    assert (found.keypoints is not None) == expected.has("pred_keypoints") == (kind == "keypoint")
    if found.keypoints is not None:
        np.testing.assert_allclose(found.keypoints, expected.pred_keypoints, atol=1e-3)


def test_channels_are_taken_in_the_order_that_is_named(image: np.ndarray) -> None:
    for image_format in ("BGR", "RGB"):
        detector = detector_of(small_predictor("faster", "INPUT.FORMAT", image_format))
        assert torch.equal(detector.prepare(image, "RGB"), detector.prepare(image[:, :, ::-1]))
        as_given = torch.from_numpy(image.transpose(2, 0, 1))
        detector = detector_of(
            small_predictor("faster", "INPUT.FORMAT", image_format, "INPUT.MIN_SIZE_TEST", "0")
        )
        assert torch.equal(detector.prepare(image, image_format), as_given)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"shape \[8, 8\], uint8: give \[height, width, 3\]"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \[8, 8, 4\]"),
        (np.zeros((8, 8, 3), np.float32), "float32: give"),
    ],
)
def test_what_is_no_image_is_told(broken: np.ndarray, message: str) -> None:
    detector = detector_of(small_predictor("faster"))
    with pytest.raises(UserError, match=message):
        detector(broken)
    with pytest.raises(UserError, match="image_format 'bgr': choose BGR or RGB"):
        detector(np.zeros((8, 8, 3), np.uint8), "bgr")


def test_an_image_without_detections(image: np.ndarray) -> None:
    for kind in ("mask", "keypoint"):
        detector = detector_of(small_predictor(kind, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0"))
        found = detector(image)
        assert found.boxes.shape == (0, 4)
        assert found.class_names == []


def test_the_documented_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """README's example runs as it stands, on a checkpoint, TorchScript and ONNX alike."""
    (code,) = re.findall(
        r"```python\n(from dgnet_det\.data import.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    predictor = small_predictor("faster")
    save(predictor, str(tmp_path / "model_final.pth"))
    detector = detector_of(predictor)
    (tmp_path / "config.yaml").write_text(predictor.cfg.dump())
    photo = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=95)
    for file_format, name in (("onnx", "detector.onnx"), ("torchscript", "detector.ts")):
        export_detector(predictor, detector.prepare(photo), file_format, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    printed = []
    loads = re.findall(r"^detector = .*\n", code, re.M)
    assert len(loads) == 3
    for load in loads:
        lines = [
            line for line in code.splitlines(keepends=True) if line not in loads or line == load
        ]
        scope: dict[str, object] = {}
        exec("".join(lines).replace("> 0.5", "> 0.0"), scope)
        printed.append(capsys.readouterr().out)
        assert isinstance(scope["found"], Detections)
    assert printed[0].count("\n") > 3
    assert printed[0] == printed[1] == printed[2]


def test_files_that_are_no_detector_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"model\.pth: neither \.onnx nor \.ts: a checkpoint needs"):
        load_detector("model.pth")
    with pytest.raises(UserError, match=r"no\.pth"):
        load_detector(tmp_path / "no.pth", config("faster"), SMALL[:2])
    for suffix in (".onnx", ".ts"):
        path = tmp_path / f"x{suffix}"
        with pytest.raises(UserError, match=f"x{suffix}: no such file"):
            load_detector(path)
        path.write_bytes(b"nonsense")
        with pytest.raises(UserError, match=f"x{suffix}: no .* file that runs here: "):
            load_detector(path)
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(tmp_path / "other.ts"))
    with pytest.raises(UserError, match=r"other\.ts: not written by tools/export_model\.py"):
        load_detector(tmp_path / "other.ts")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed: pip install"):
        load_detector(tmp_path / "x.onnx")
