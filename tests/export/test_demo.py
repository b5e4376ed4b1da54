"""tools/demo.py, on images and on a video that it is given."""

import json
from collections.abc import Sequence
from pathlib import Path
from runpy import run_path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
from detectors import SMALL, config, route_at_random
from PIL import Image
from skimage import data
from torch import nn

from configs import ROOT
from dgnet_det.config import load_cfg, score_threshold
from dgnet_det.errors import UserError
from dgnet_det.export.demo import annotator, to_records
from dgnet_det.export.predictor import Detections, detector_of, load_predictor
from dgnet_det.modeling.build import build_model
from dgnet_det.utils.videos import Video, written_video

main = run_path(str(ROOT / "tools" / "demo.py"))["main"]
CONFIDENCE = 0.05
NAMES = ["kite", "ball"]  # of the checkpoint; the config has 80 classes


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with class names, whose detector finds something in every photograph."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    model = build_model(load_cfg(config("faster"), [*SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", "2"]))
    route_at_random(model)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=2)  # type: ignore
    torch.save({"model": model.state_dict(), "class_names": NAMES}, path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs, and a pan over one of them."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(data.coffee()[::4, ::4]).save(folder / "coffee.jpg")
    Image.fromarray(data.astronaut()[::5, ::5]).save(folder / "astronaut.png")
    photo = data.coffee()[:, :, ::-1]
    with written_video(folder / "pan.mp4", 10) as append:
        for k in range(4):
            append(np.ascontiguousarray(photo[20 * k :, 40 * k :][:96, :128]))
    return folder


def argv(weights: str, output: Path, *inputs: str | Path, options: Sequence[str] = ()) -> list[str]:
    return [
        "--config-file", config("faster"), "--input", *map(str, inputs), "--output", str(output),
        "--confidence", str(CONFIDENCE), *options, *SMALL, "MODEL.WEIGHTS", weights,
    ]  # fmt: skip


def run(*args: Any, **kwargs: Any) -> dict[str, Any]:
    main(argv(*args, **kwargs))
    return json.loads((args[1] / "detections.json").read_text())


def test_a_folder_of_images_and_a_video(folder: Path, weights: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    report = run(weights, output, folder)
    assert sorted(path.name for path in output.iterdir()) == [
        "astronaut.png", "coffee.png", "detections.json", "pan.mp4",
    ]  # fmt: skip
    assert report["class_names"] == NAMES
    assert [Path(image["file"]).name for image in report["images"]] == [
        "astronaut.png",
        "coffee.jpg",
    ]
    assert [image["picture"] for image in report["images"]] == ["astronaut.png", "coffee.png"]

    opts = [*SMALL, "MODEL.WEIGHTS", weights, *score_threshold(CONFIDENCE, "")]
    predictor = load_predictor(load_cfg(config("faster"), opts))
    detector = detector_of(predictor)
    image = report["images"][1]
    pixels = cv2.imread(image["file"])
    assert (image["height"], image["width"]) == pixels.shape[:2]
    expected = detector(pixels)
    assert len(expected.scores) > 0
    assert (expected.scores > CONFIDENCE).all()
    found = image["detections"]
    np.testing.assert_allclose([d["box"] for d in found], expected.boxes, atol=0.006)
    np.testing.assert_allclose([d["score"] for d in found], expected.scores, atol=6e-5)
    assert [d["class_id"] for d in found] == expected.classes.tolist()
    assert [d["class_name"] for d in found] == [NAMES[k] for k in expected.classes]

    (video,) = report["videos"]
    assert (video["width"], video["height"], video["frames_per_second"]) == (128, 96, 10)
    assert [frame["frame"] for frame in video["frames"]] == [0, 1, 2, 3]
    drawn = list(Video(output / "pan.mp4"))
    frames = list(Video(folder / "pan.mp4"))
    with annotator(predictor, wiring=False) as annotate:
        for frame, picture, record in zip(frames, drawn, video["frames"], strict=True):
            annotated = annotate(frame)
            assert record["detections"] == to_records(annotated.detections)
            # The codec loses a little.
            height, width = annotated.picture.shape[:2]
            difference = annotated.picture[:, :, ::-1] - picture[:height, :width].astype(float)
            assert np.abs(difference).mean() < 6
    assert sum(len(frame["detections"]) for frame in video["frames"]) > 0


def test_wiring_beside_images_and_frames(folder: Path, weights: str, tmp_path: Path) -> None:
    plain, wired = tmp_path / "plain", tmp_path / "wired"
    inputs = [folder / "coffee.jpg", folder / "pan.mp4"]
    a = run(weights, plain, *inputs)
    b = run(weights, wired, *inputs, options=["--wiring"])
    assert a["images"][0]["detections"] == b["images"][0]["detections"]
    with Image.open(plain / "coffee.png") as bare, Image.open(wired / "coffee.png") as beside:
        assert beside.width > 1.5 * bare.width
    frames = list(Video(wired / "pan.mp4"))
    assert len(frames) == 4
    # The graphs, right of the image, follow the frame; titles and scale stay where they are.
    right = np.stack(frames)[:, :, 900:].astype(float)
    assert np.abs(np.diff(right, axis=0)).max() > 100
    assert (np.ptp(right, axis=0).max(axis=2) < 40).mean() > 0.9


def test_patterns(folder: Path, weights: str, tmp_path: Path) -> None:
    report = run(weights, tmp_path / "out", folder / "*.jpg")
    assert [image["picture"] for image in report["images"]] == ["coffee.png"]


def test_other_files_in_the_output_folder_stay(folder: Path, weights: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    run(weights, tmp_path / "out", folder / "coffee.jpg")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_mistakes_leave_nothing(folder: Path, weights: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (folder / "late.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"late\.mp4: the video does not decode"):
        run(weights, output, folder)
    (folder / "late.mp4").unlink()
    (folder / "zz.png").write_bytes((folder / "astronaut.png").read_bytes()[:500])
    with pytest.raises(UserError, match=r"zz\.png: the image does not decode"):
        run(weights, output, folder)
    (folder / "zz.png").unlink()
    with pytest.raises(UserError, match="nowhere: no such image or folder"):
        run(weights, output, folder / "nowhere")
    with pytest.raises(UserError, match="--confidence -1: give a number from 0 to 1"):
        run(weights, output, folder, options=["--confidence", "-1"])
    with pytest.raises(UserError, match=r"astronaut\.png: a picture would overwrite this image"):
        run(weights, folder, folder)
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: empty"):
        run("", output, folder)
    plain = ["MODEL.DGNET.EDGE_WEIGHTS", "none"]
    model = build_model(load_cfg(config("faster"), [*SMALL, *plain]))
    torch.save({"model": model.state_dict()}, weights + ".plain.pth")
    with pytest.raises(UserError, match="the plain network has no wiring"):
        main([*argv(weights + ".plain.pth", output, folder, options=["--wiring"]), *plain])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_file_in_place_of_the_folder(folder: Path, weights: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out: is a file: name a folder to write to"):
        run(weights, tmp_path / "out", folder / "coffee.jpg")
    assert (tmp_path / "out").read_text() == "mine"


def test_records_of_masks_and_keypoints() -> None:
    mask = np.zeros((2, 12, 10), bool)
    mask[1, 2:5, 3:9] = True
    detections = Detections(
        boxes=np.array([[0, 1, 2.5, 3], [3, 2, 9, 5]], np.float32),
        scores=np.array([0.75, 0.5], np.float32),
        classes=np.array([1, 0]),
        class_names=["ball", "kite"],
        masks=mask,
        keypoints=np.array([[[1, 2, 0.5]], [[3, 4, 0.25]]], np.float32),
    )
    first, second = json.loads(json.dumps(to_records(detections)))
    assert first["box"] == [0, 1, 2.5, 3]
    assert (first["score"], first["class_id"], first["class_name"]) == (0.75, 1, "ball")
    assert second["keypoints"] == [[3, 4, 0.25]]
    decoded = pycocotools.mask.decode(second["mask"])
    np.testing.assert_array_equal(decoded.astype(bool), mask[1])
    bare = detections._replace(masks=None, keypoints=None)
    assert to_records(bare)[0].keys() == {"box", "score", "class_id", "class_name"}
