"""The pictures, and the tools that write them."""

import json
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import Detections, load_predictor
from dgnet_det.modeling.observation import dynamic_graphs
from dgnet_det.utils.pictures import (
    CLASS_COLORS,
    SIDE,
    draw_beside_truth,
    draw_detections,
    figure_pixels,
    picture_paths,
    save_figure,
)

ROOT = Path(__file__).parent.parent
visualize_wiring = run_path(str(ROOT / "tools" / "visualize_wiring.py"))["main"]
visualize_detections = run_path(str(ROOT / "tools" / "visualize_detections.py"))["main"]
CONFIGS = ROOT / "configs" / "Tree-Crowns"
DYNAMIC = str(CONFIGS / "faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml")
PLAIN = str(CONFIGS / "faster_rcnn_MobileNetV2_FPN_tree_crowns.yaml")
SMALL = ["MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "64"]
NAME = "dgnet_test_pictures"


def pixels_of(figure: Figure, path: Path) -> np.ndarray:
    save_figure(figure, path)
    return np.asarray(Image.open(path).convert("RGB"))


def colored(picture: np.ndarray, color: str) -> np.ndarray:
    """Where a picture of grey 128 has gone some way toward a colour, [H, W]."""
    toward = np.array(to_rgb(color)) * 255 - 128
    return (picture - 128.0) @ toward > 0.4 * toward @ toward


FOUND = Detections(
    boxes=np.array([[5, 5, 30, 30], [40, 10, 60, 40]], np.float32),
    scores=np.array([0.9, 0.6], np.float32),
    classes=np.array([0, 1]),
    class_names=["kite", "ball"],
)
GREY = np.full((50, 80, 3), 128, np.uint8)


def test_detections_are_where_they_were_found() -> None:
    picture = draw_detections(GREY, FOUND)
    assert picture.shape == (int(SIDE * 50 / 80), SIDE, 3)
    scale = SIDE / 80
    for box, label in zip(FOUND.boxes, FOUND.classes, strict=True):
        rows, columns = colored(picture, CLASS_COLORS[label]).nonzero()
        left, top, right, bottom = box * scale
        # Lines are some pixels wide, and the label sticks out at the bottom.
        assert columns.min() == pytest.approx(left, abs=12)
        assert rows.min() == pytest.approx(top, abs=12)
        assert columns[rows < bottom].max() == pytest.approx(right, abs=12)
    # Large images keep their size, and a side may be asked for.
    large = np.full((700, 1000, 3), 128, np.uint8)
    assert draw_detections(large, FOUND).shape == (700, 1000, 3)
    assert draw_detections(large, FOUND, side=500).shape == (350, 500, 3)


def test_class_names_and_scores_are_on_the_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(Visualizer, "draw_text", lambda self, text, *a, **k: texts.append(text))
    draw_detections(GREY, FOUND)
    assert sorted(texts) == ["ball 60%", "kite 90%"]


def test_masks_and_keypoints_are_drawn() -> None:
    mask = np.zeros((2, 50, 80), bool)
    mask[0, 10:20, 10:20] = True
    bare = draw_detections(GREY, FOUND)
    masked = draw_detections(GREY, FOUND._replace(masks=mask))
    y, x = np.mgrid[12:18, 12:18] * SIDE // 80
    assert (masked[y, x] != bare[y, x]).any(axis=2).all()
    points = np.array([[[15, 25, 0.9]], [[50, 30, 0.9]]], np.float32)
    dotted = draw_detections(GREY, FOUND._replace(keypoints=points))
    for px, py, _ in points[:, 0]:
        y, x = int(py * SIDE / 80), int(px * SIDE / 80)
        assert (dotted[y, x] != bare[y, x]).any()


def test_detections_beside_the_truth(tmp_path: Path) -> None:
    truth = [
        {"bbox": [41, 11, 19, 28], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    ]
    kite = Detections(FOUND.boxes[:1], FOUND.scores[:1], FOUND.classes[:1], ["kite"])
    figure = draw_beside_truth(GREY, kite, truth, ["kite", "ball"], threshold=0.5)
    left, right = figure.axes
    assert left.get_title() == "detections of score > 0.5: 1"
    assert right.get_title() == "ground truth: 1"
    # Both sides have boxes, each in its class's colour.
    for axes, color in ((left, CLASS_COLORS[0]), (right, CLASS_COLORS[1])):
        assert colored(np.asarray(axes.images[0].get_array()), color).sum() > 500
    pixels = pixels_of(figure, tmp_path / "detections.png")
    assert [path.name for path in tmp_path.iterdir()] == ["detections.png"]
    assert figure_pixels(figure).shape == pixels.shape
    none = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), [])
    nothing = draw_beside_truth(GREY, none, [], ["kite", "ball"], threshold=0.5)
    assert pixels_of(nothing, tmp_path / "nothing.png").shape[0] > 400


def test_where_pictures_go(tmp_path: Path) -> None:
    files = [tmp_path / "a.jpg", tmp_path / "b.MOV"]
    out = tmp_path / "out"
    assert picture_paths(out, files, {".mov": ".mp4"}) == [out / "a.png", out / "b.mp4"]
    with pytest.raises(UserError, match=r"c/a\.png: another file would also be drawn as"):
        picture_paths(out, [*files, tmp_path / "c" / "a.png"])
    with pytest.raises(UserError, match=r"x\.png: a picture would overwrite this image"):
        picture_paths(tmp_path / "in", [tmp_path / "in" / "x.png"])


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Path]:
    """Five registered images of 64 × 48 pixels with one box each, in a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for k in range(5):
        noise = generator.integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{k}.png")
    coco = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 64, "height": 48} for k in range(5)],
        "annotations": [
            {"id": k + 1, "image_id": k, "category_id": 1, "bbox": [9, 9, 20, 20], "area": 400}
            for k in range(5)
        ],
        "categories": [{"id": 1, "name": "tree"}],
    }
    annotation = tmp_path / "set.json"
    annotation.write_text(json.dumps(coco))
    register_coco_instances(NAME, {}, str(annotation), str(folder))
    yield folder
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_visualize_wiring(images: Path, tmp_path: Path) -> None:
    output, figures = tmp_path / "out", tmp_path / "wiring.json"
    argv = ["--config-file", DYNAMIC, "--input", str(images / "0.png"), str(images / "3.png")]
    argv += ["--output", str(output), "--json", str(figures), *SMALL, "SEED", "1"]
    visualize_wiring(argv)
    assert sorted(path.name for path in output.iterdir()) == ["0.png", "3.png"]
    written = json.loads(figures.read_text())
    assert [image["file"] for image in written["images"]] == [argv[3], argv[4]]
    graphs = written["images"][0]["graphs"]
    assert list(graphs) == list(dynamic_graphs(load_predictor(load_cfg(DYNAMIC, SMALL)).model))
    # As built: α = 0.5 and γ = 0 on every further edge.
    assert graphs["res3.0"]["open_edges"] == 1
    assert graphs["res3.0"]["mean_weight"] == graphs["res3.0"]["absent_nodes"] == 0
    alpha = torch.tensor(graphs["res3.0"]["alpha"])
    assert torch.equal(alpha, 0.5 * torch.ones(5, 5).tril(-2) + torch.ones(5, 5).tril(-1).triu(-1))


def test_the_same_images(images: Path, tmp_path: Path) -> None:
    common = ["--num", "2", "--dataset", NAME]
    output = tmp_path / "wiring"
    visualize_wiring(["--config-file", DYNAMIC, *common, "--output", str(output), *SMALL])
    assert sorted(path.name for path in output.iterdir()) == ["0.png", "2.png"]
    output = tmp_path / "detections"
    visualize_detections(
        ["--config-file", PLAIN, *common, "--threshold", "0", "--output", str(output), *SMALL]
    )
    assert sorted(path.name for path in output.iterdir()) == ["0.png", "2.png"]


def test_predictor_prepares_images_as_configured(images: Path) -> None:
    """The network sees the image in INPUT.FORMAT, normalised and resized for testing."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:] = (10, 20, 30)  # BGR
    predictor = load_predictor(load_cfg(PLAIN, [*SMALL, "INPUT.MIN_SIZE_TEST", "96"]))
    seen: list[torch.Tensor] = []
    predictor.model.backbone.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    predictor(pixels)
    (batch,) = seen
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = (torch.tensor([30.0, 20.0, 10.0]) - mean) / std
    assert torch.allclose(batch[0, :, 50, 50], expected)
    assert batch.shape == (1, 3, 96, 128)


def test_mistakes(images: Path, tmp_path: Path) -> None:
    def wiring(*argv: str, config: str = DYNAMIC) -> None:
        visualize_wiring(
            ["--config-file", config, "--output", str(tmp_path / "out"), *argv, *SMALL]
        )

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png: the image does not decode"):
        wiring("--json", str(tmp_path / "j.json"), "--input", str(broken), "--num", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no image in this folder"):
        wiring("--input", str(tmp_path / "empty"), "--num", "1")
    with pytest.raises(UserError, match="the plain network has no wiring"):
        wiring("--input", str(images), "--num", "1", config=PLAIN)
    with pytest.raises(UserError, match="another file would also be drawn as"):
        wiring("--input", str(images), str(images / "0.png"), "--num", "1")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "j.json").exists()
    with pytest.raises(UserError, match=r"--threshold 1\.5: give a number from 0 to 1"):
        visualize_detections(
            ["--config-file", PLAIN, "--output", str(tmp_path), "--threshold", "1.5", *SMALL]
        )
    with pytest.raises(UserError, match="no dataset 'nowhere' is registered"):
        visualize_detections(
            ["--config-file", PLAIN, "--output", str(tmp_path), "--dataset", "nowhere", *SMALL]
        )
