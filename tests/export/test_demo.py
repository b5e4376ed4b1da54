"""Pictures, videos and records of what a detector finds, and the tools that write them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import VisImage
from helpers.detectors import SMALL, config, route_at_random, write_objects
from PIL import Image
from skimage import data
from torch import nn

from dgnet_cli.demo import main as demo
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.export.demo import (
    SIDE_BY_GRAPHS,
    annotate,
    draw_detections,
    draw_edge_weights,
    draw_truth,
    to_records,
)
from dgnet_det.export.exported import export_detector
from dgnet_det.export.predictor import Predictor, load_predictor
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import dynamic_graphs, record_decisions
from dgnet_det.utils.detection_pictures import SIDE, writable
from dgnet_det.utils.pictures import CAPTION, GAP
from dgnet_det.utils.videos import Video, written_video

CONFIDENCE = 0.05
NAMES = ["kite", "ball"]  # of the checkpoint; the config has 80 classes
DATASET = "dgnet_test_demo"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model.pth``, whose detector finds something in every photograph, and ``in``:
    two photographs and a pan over one of them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made")
    model = build_model(load_cfg(config("faster"), [*SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", "2"]))
    route_at_random(model)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=2)  # type: ignore
    torch.save({"model": model.state_dict(), "class_names": NAMES}, folder / "model.pth")
    (folder / "in").mkdir()
    Image.fromarray(data.coffee()[::4, ::4]).save(folder / "in/coffee.jpg")
    Image.fromarray(data.astronaut()[::5, ::5]).save(folder / "in/astronaut.png")
    photo = data.coffee()[:, :, ::-1]
    with written_video(folder / "in/pan.mp4", 10) as append:
        for k in range(4):
            append(np.ascontiguousarray(photo[20 * k :, 40 * k :][:96, :128]))
    return folder


@pytest.fixture
def predictor(made: Path) -> Predictor:
    opts = [*SMALL, "MODEL.WEIGHTS", str(made / "model.pth")]
    return load_predictor(load_cfg(config("faster"), opts))


def run(
    made: Path, output: Path, *inputs: str | Path, options: Sequence[str] = ()
) -> dict[str, Any]:
    """The JSON of tools/demo.py."""
    demo(
        ["--config-file", config("faster"), "--input", *map(str, inputs), "--output", str(output),
         "--confidence", str(CONFIDENCE), *SMALL, "MODEL.WEIGHTS", str(made / "model.pth"),
         *options]
    )  # fmt: skip
    return json.loads((output / "detections.json").read_text())


@pytest.fixture(scope="module")
def plain(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What the demo writes of all inputs, and its JSON."""
    output = tmp_path_factory.mktemp("plain") / "out"
    return output, run(made, output, made / "in")


def test_a_folder_of_images_and_a_video(
    made: Path, plain: tuple[Path, dict], predictor: Predictor
) -> None:
    output, report = plain
    optimize_for_inference(predictor.model)
    assert sorted(path.name for path in output.iterdir()) == [
        "astronaut.png", "coffee.png", "detections.json", "pan.mp4",
    ]  # fmt: skip
    assert report["class_names"] == NAMES
    images = [(Path(image["file"]).name, image["picture"]) for image in report["images"]]
    assert images == [("astronaut.png", "astronaut.png"), ("coffee.jpg", "coffee.png")]

    image = report["images"][1]
    pixels = cv2.imread(image["file"])
    assert (image["height"], image["width"]) == pixels.shape[:2]
    expected = predictor(pixels)
    expected = expected[expected.scores > CONFIDENCE]
    found = image["detections"]
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(
        [d["box"] for d in found], expected.pred_boxes.tensor.numpy(), atol=0.006
    )
    np.testing.assert_allclose([d["score"] for d in found], expected.scores.numpy(), atol=6e-5)
    assert [d["class_id"] for d in found] == expected.pred_classes.tolist()
    assert [d["class_name"] for d in found] == [NAMES[k] for k in expected.pred_classes]

    (video,) = report["videos"]
    assert (video["width"], video["height"], video["frames_per_second"]) == (128, 96, 10)
    assert [frame["frame"] for frame in video["frames"]] == [0, 1, 2, 3]
    frames, drawn = Video(made / "in/pan.mp4"), Video(output / "pan.mp4")
    for frame, picture, record in zip(frames, drawn, video["frames"], strict=True):
        expected_picture, expected_record = annotate(predictor, frame, confidence=CONFIDENCE)
        assert record["detections"] == expected_record["detections"]
        # The codec loses a little.
        height, width = expected_picture.shape[:2]
        difference = expected_picture[:, :, ::-1] - picture[:height, :width].astype(float)
        assert np.abs(difference).mean() < 6
    assert sum(len(frame["detections"]) for frame in video["frames"]) > 0


def test_graphs_beside_images_and_frames(
    made: Path, plain: tuple[Path, dict], predictor: Predictor, tmp_path: Path
) -> None:
    inputs = [made / "in/coffee.jpg", made / "in/pan.mp4"]
    report = run(made, tmp_path / "out", *inputs, options=["--wiring"])
    assert report["images"][0]["detections"] == plain[1]["images"][1]["detections"]
    with Image.open(tmp_path / "out/coffee.png") as picture:
        assert picture.width > 2 * SIDE_BY_GRAPHS
    frames = np.stack(list(Video(tmp_path / "out/pan.mp4"))).astype(float)
    assert len(frames) == 4
    # The graphs, right of the image, follow the frame; titles and scales stay where they are.
    right = frames[:, :, 900:]
    assert np.abs(np.diff(right, axis=0)).max() > 100
    assert (np.ptp(right, axis=0).max(axis=2) < 40).mean() > 0.9

    graphs = report["images"][0]["graphs"]
    assert list(graphs) == list(dynamic_graphs(predictor.model))
    with record_decisions(predictor.model) as edge_weights:
        predictor(cv2.imread(str(inputs[0])))
    for name, weights in edge_weights.items():
        np.testing.assert_allclose(graphs[name]["alpha"], weights.value[0], atol=1e-4)
        np.testing.assert_allclose(graphs[name]["weight"], weights.weight[0], atol=1e-4)

    # All pictures of a detector have one scale.
    bars = [
        [axes.get_ylim() for axes in draw_edge_weights(predictor.model, scaled).axes[1:]]
        for scaled in (
            edge_weights,
            {k: w._replace(weight=w.weight / 9) for k, w in edge_weights.items()},
        )
    ]
    assert bars[0] == bars[1]


def test_an_exported_detector(
    made: Path, plain: tuple[Path, dict], predictor: Predictor, tmp_path: Path
) -> None:
    example = predictor.prepare(cv2.imread(str(made / "in/astronaut.png")))
    file = tmp_path / "detector.ts"
    export_detector(predictor, example, file)
    argv = ["--input", str(made / "in/coffee.jpg"), "--output", str(tmp_path / "out")]
    argv += ["--exported", str(file), "--confidence", str(CONFIDENCE)]
    demo(argv)
    (image,) = json.loads((tmp_path / "out/detections.json").read_text())["images"]
    expected = plain[1]["images"][1]["detections"]
    assert [d["class_name"] for d in image["detections"]] == [d["class_name"] for d in expected]
    boxes, expected_boxes = ([d["box"] for d in ds] for ds in (image["detections"], expected))
    np.testing.assert_allclose(boxes, expected_boxes, atol=0.02)
    for more in (["--wiring"], ["--config-file", "x.yaml"], ["MODEL.DEVICE", "cpu"]):
        with pytest.raises(SystemExit):
            demo([*argv, *more])


def test_broken_files_do_not_stop_the_others(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_text("no video")
    whole = (made / "in/astronaut.png").read_bytes()
    (tmp_path / "in/b.png").write_bytes(whole[:500])
    (tmp_path / "in/c.png").write_bytes(whole)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="2 of 3 files could not be read or drawn"):
        run(made, tmp_path / "out", tmp_path / "in")
    errors = capsys.readouterr().err
    assert "in/a.mp4: the video does not decode" in errors
    assert "in/b.png: the image does not decode" in errors
    report = json.loads((tmp_path / "out/detections.json").read_text())
    assert [Path(image["file"]).name for image in report["images"]] == ["c.png"]
    assert report["images"][0]["detections"]
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["c.png", "detections.json", "mine.txt"]


def test_mistakes_write_nothing(made: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "out", made / "in"
    with pytest.raises(UserError, match="nowhere: no such image or folder"):
        run(made, output, folder / "nowhere")
    with pytest.raises(UserError, match="-1: give a number from 0 to 1"):
        run(made, output, folder, options=["--confidence", "-1"])
    with pytest.raises(UserError, match=r"astronaut\.png: a picture would overwrite this image"):
        run(made, folder, folder)
    assert not output.exists()
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: empty"):
        run(made, output, folder, options=["MODEL.WEIGHTS", ""])
    plain = ["MODEL.DGNET.EDGE_WEIGHTS", "none"]
    model = build_model(load_cfg(config("faster"), [*SMALL, *plain]))
    torch.save({"model": model.state_dict()}, tmp_path / "plain.pth")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "plain.pth")]
    with pytest.raises(UserError, match="plain network has no edge weights"):
        run(made, output, folder, options=["--wiring", *plain, *weights])
    assert not list(output.iterdir())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        run(made, tmp_path / "file", folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Four registered images with masks and keypoints."""
    folder = tmp_path_factory.mktemp("dataset")
    write_objects(folder / "set.json", folder / "images")
    register_coco_instances(DATASET, {}, str(folder / "set.json"), str(folder / "images"))
    yield DATASET
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def test_images_of_a_dataset(made: Path, dataset: str, tmp_path: Path) -> None:
    one = ["MODEL.ROI_HEADS.NUM_CLASSES", "1"]
    model = build_model(load_cfg(config("faster"), [*SMALL, *one]))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    common = ["--dataset", dataset, "--num", "2", "--config-file", config("faster"), *SMALL, *one,
              "MODEL.WEIGHTS", str(tmp_path / "model.pth"), "--truth"]  # fmt: skip
    demo([*common, "--output", str(tmp_path / "seen"), "--json", str(tmp_path / "seen.json")])
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == ["0.png", "2.png"]
    with Image.open(tmp_path / "seen/0.png") as picture:
        assert picture.width == 2 * SIDE + GAP
        assert picture.height > CAPTION
    assert len(json.loads((tmp_path / "seen.json").read_text())["images"]) == 2
    with pytest.raises(UserError, match="nowhere: no such dataset is registered"):
        demo([*common, "--output", str(tmp_path), "--dataset", "nowhere"])
    with pytest.raises(UserError, match=r"^voc_2007_val: .*VOC2007"):  # Detectron2's, not in COCO's
        demo([*common, "--output", str(tmp_path), "--dataset", "voc_2007_val"])
    torch.save({"model": model.state_dict(), "class_names": ["kite"]}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"trained for the classes kite, but the data have"):
        demo([*common, "--output", str(tmp_path)])


GREY = np.full((50, 80, 3), 128, np.uint8)


def two_birds() -> Instances:
    return Instances(
        (50, 80),
        pred_boxes=Boxes(torch.tensor([[5.0, 15, 30, 30], [40, 10, 60, 40]])),
        scores=torch.tensor([0.75, 0.5]),
        pred_classes=torch.tensor([0, 1]),
    )


def changed(picture: np.ndarray) -> np.ndarray:
    """Where a picture of a grey image is not grey, in that image's pixels, [50, 80] bool."""
    return (np.asarray(Image.fromarray(picture).resize((80, 50))) != GREY).any(axis=2)


def test_boxes_masks_and_keypoints_are_where_they_should_be() -> None:
    found = two_birds()
    boxes = draw_detections(GREY, found, NAMES)
    assert max(boxes.shape) == SIDE
    assert max(draw_detections(GREY, found, NAMES, side=400).shape) == 400
    assert changed(boxes)[25, [5, 30, 40, 60]].all()
    assert not changed(boxes)[25, [2, 17, 35, 50, 70]].any()
    assert (draw_detections(GREY, found[:0], NAMES) == 128).all()

    found.pred_masks = torch.zeros(2, 50, 80, dtype=torch.bool)
    found.pred_masks[0, 15:30, 5:30] = True
    assert changed(draw_detections(GREY, found, NAMES))[25, 17]

    points = torch.tensor([[[10.0, 22, 0.9], [26, 22, 0.9], [70, 20, 0.01]]]).repeat(2, 1, 1)
    found.remove("pred_masks")
    found.pred_keypoints = points
    metadata = MetadataCatalog.get("dgnet_test_skeleton").set(
        keypoint_names=["a", "b", "c"], keypoint_connection_rules=[("a", "b", (255, 0, 0))]
    )
    dotted = changed(draw_detections(GREY, found, NAMES))
    linked = changed(draw_detections(GREY, found, NAMES, metadata=metadata))
    for drawn in (dotted, linked):
        assert drawn[22, [10, 26]].all()
        assert not drawn[20, 70]
    assert not dotted[22, 18]
    assert linked[22, 18]


def test_the_truth_has_its_masks(dataset: str) -> None:
    annotations = DatasetCatalog.get(dataset)[0]["annotations"]
    names = MetadataCatalog.get(dataset).thing_classes
    grey = np.full((64, 80, 3), 128, np.uint8)
    whole = draw_truth(grey, annotations, names)
    bare = [{key: a[key] for key in ("bbox", "bbox_mode", "category_id")} for a in annotations]
    # A field that one of them does not have is left out.
    for some in (bare, [annotations[0], bare[1]]):
        boxes = draw_truth(grey, some, names)
        assert 0 < boxes.std() < whole.std()
    assert (draw_truth(grey, [], names) == 128).all()


def test_labels_are_inside_and_off_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Black patches behind the labels of many objects in one place and at the edges; one for which
    there is no room is left out."""
    boxes = [[5.0, 5, 35, 40]] * 6 + [[70, 0, 79, 8], [0, 45, 9, 49]]
    found = Instances(
        (50, 80),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.linspace(0.9, 0.1, len(boxes)),
        pred_classes=torch.arange(len(boxes)) % 2,
    )
    extents: list[Any] = []
    get_image = VisImage.get_image

    def keep(drawn: VisImage) -> np.ndarray:
        picture = get_image(drawn)
        renderer = drawn.canvas.get_renderer()  # type: ignore[attr-defined]
        extents.extend(text.get_window_extent(renderer) for text in drawn.ax.texts)
        return picture

    monkeypatch.setattr(VisImage, "get_image", keep)
    picture = draw_detections(GREY, found, NAMES)
    height, width = picture.shape[:2]
    assert 3 <= len(extents) < len(boxes)
    for k, one in enumerate(extents):
        assert one.x0 >= 0 <= one.y0
        assert one.x1 <= width
        assert one.y1 <= height
        assert not any(one.overlaps(other) for other in extents[:k])


def test_names_that_no_font_can_write_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    private = ("\U000f0001\U000f0002", "\U000f0003", "$5")
    found = two_birds()[:1]
    pictures = [draw_detections(GREY, found, [name]) for name in private]
    assert (pictures[0] != pictures[1]).any()
    assert writable(private[1])[1] == "\\U000f0003"
    assert caplog.text.count("no installed font has the letters of") == 2


def test_the_truth_beside_a_box_detector_is_boxes(predictor: Predictor, dataset: str) -> None:
    image = DatasetCatalog.get(dataset)[0]
    pixels = cv2.imread(image["file_name"])
    whole = image["annotations"]
    bare = [{key: a[key] for key in ("bbox", "bbox_mode", "category_id")} for a in whole]
    first, second = (
        annotate(predictor, pixels, confidence=CONFIDENCE, truth=truth)[0]
        for truth in (whole, bare)
    )
    assert (first == second).all()


def test_records_of_masks_and_keypoints() -> None:
    mask = torch.zeros(2, 12, 10, dtype=torch.bool)
    mask[1, 2:5, 3:9] = True
    found = Instances(
        (12, 10),
        pred_boxes=Boxes(torch.tensor([[0, 1, 2.5, 3], [3, 2, 9, 5]])),
        scores=torch.tensor([0.75, 0.5]),
        pred_classes=torch.tensor([1, 0]),
    )
    assert to_records(found, NAMES)[0].keys() == {"box", "score", "class_id", "class_name"}
    found.pred_masks = mask
    found.pred_keypoints = torch.tensor([[[1, 2, 0.5]], [[3, 4, 0.25]]])
    first, second = json.loads(json.dumps(to_records(found, NAMES)))
    assert first["box"] == [0, 1, 2.5, 3]
    assert (first["score"], first["class_id"], first["class_name"]) == (0.75, 1, "ball")
    assert second["keypoints"] == [[3, 4, 0.25]]
    decoded = pycocotools.mask.decode(second["mask"])
    np.testing.assert_array_equal(decoded.astype(bool), mask[1])
