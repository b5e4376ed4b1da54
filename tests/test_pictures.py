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
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.inference import load_predictor
from dgnet_det.pictures import (
    CLASS_COLORS,
    CLOSED,
    draw_detections,
    draw_wiring,
    largest_weight,
    save_figure,
)
from dgnet_det.wiring import RecordedWiring, dynamic_graphs

ROOT = Path(__file__).parent.parent
visualize_wiring = run_path(str(ROOT / "tools" / "visualize_wiring.py"))["main"]
visualize_detections = run_path(str(ROOT / "tools" / "visualize_detections.py"))["main"]
CONFIGS = ROOT / "configs" / "Tree-Crowns"
DYNAMIC = str(CONFIGS / "faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml")
PLAIN = str(CONFIGS / "faster_rcnn_MobileNetV2_FPN_tree_crowns.yaml")
SMALL = ["MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "64"]
NAME = "dgnet_test_pictures"


def make_wiring(num_nodes: int, *, residual: bool) -> RecordedWiring:
    """Random weights of two samples, with the edge 0 → 2 closed in the first."""
    alpha = (0.1 + 0.8 * torch.rand(2, num_nodes, num_nodes)).tril(-1)
    alpha[0, 2, 0] = 0
    weight = alpha
    if residual:
        weight = alpha * torch.randn(num_nodes, num_nodes)
        for j in range(1, num_nodes):
            alpha[:, j, j - 1] = weight[:, j, j - 1] = 1
    return RecordedWiring(alpha, weight, residual)


def pixels_of(figure: Figure, path: Path) -> np.ndarray:
    save_figure(figure, path)
    return np.asarray(Image.open(path).convert("RGB"))


def cells_of(figure: Figure, title: str) -> dict[tuple[int, int], Rectangle]:
    """The cells of one matrix by (to node, from node)."""
    (axes,) = [a for sub in figure.subfigs for a in sub.axes if a.get_title().startswith(title)]
    cells = [p for p in axes.patches if isinstance(p, Rectangle)]
    return {(round(p.get_y() + 1.5), round(p.get_x() + 0.5)): p for p in cells}


@pytest.mark.parametrize("residual", [False, True])
def test_wiring_picture(tmp_path: Path, residual: bool) -> None:
    image = np.full((40, 60, 3), 90, np.uint8)
    wirings = {
        "res2.0": make_wiring(4, residual=residual),
        "res3.0": make_wiring(25, residual=residual),
    }
    figure = draw_wiring(image, wirings)
    pixels = pixels_of(figure, tmp_path / "wiring.png")
    assert [path.name for path in tmp_path.iterdir()] == ["wiring.png"]
    assert pixels.std() > 10
    cells = cells_of(figure, "res2.0")
    assert set(cells) == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}
    assert cells[2, 0].get_facecolor()[:3] == to_rgb(CLOSED)
    assert cells[3, 0].get_facecolor()[:3] != to_rgb(CLOSED)
    assert len(cells_of(figure, "res3.0")) == 25 * 24 / 2
    if residual:
        assert {cells[j, j - 1].get_facecolor()[:3] for j in (1, 2, 3)} == {(1, 1, 1)}
    # The second sample has all edges open.
    second = cells_of(draw_wiring(image, wirings, sample=1), "res2.0")
    assert second[2, 0].get_facecolor()[:3] != to_rgb(CLOSED)


def test_one_scale_for_all_graphs() -> None:
    wirings = {name: make_wiring(3, residual=False) for name in ("res2.0", "res3.0")}
    for wiring in wirings.values():
        wiring.weight[0, 2, 1] = 0.3
    figure = draw_wiring(np.zeros((8, 8, 3), np.uint8), wirings)
    colors = {cells_of(figure, name)[2, 1].get_facecolor() for name in wirings}
    assert len(colors) == 1


def test_titles_count_open_edges() -> None:
    wirings = {"res2.0": make_wiring(4, residual=False), "res2.1": make_wiring(5, residual=True)}
    figure = draw_wiring(np.zeros((8, 8, 3), np.uint8), wirings)
    titles = [axes.get_title() for sub in figure.subfigs for axes in sub.axes]
    assert "res2.0: 5 of 6 open" in titles
    assert "res2.1: 5 of 6 open" in titles


def test_largest_weight_leaves_the_chain_out() -> None:
    alpha = torch.ones(1, 4, 4).tril(-1)
    weight = alpha.clone()
    weight[0, 2, 0], weight[0, 3, 0], weight[0, 3, 1] = 0.1, -0.4, 0.2
    wiring = RecordedWiring(alpha, weight, residual=True)
    assert largest_weight({"res2.0": wiring}) == pytest.approx(0.4)
    # Before training every γ is 0, which must draw too.
    wiring = RecordedWiring(alpha, weight * 0, residual=True)
    draw_wiring(np.zeros((8, 8, 3), np.uint8), {"res2.0": wiring})


def test_detections_picture(tmp_path: Path) -> None:
    metadata = MetadataCatalog.get("dgnet_test_metadata")
    metadata.thing_classes = ["kite", "ball"]
    image = np.full((50, 80, 3), 128, np.uint8)
    found = Instances(
        (50, 80),
        pred_boxes=Boxes([[5, 5, 30, 30], [40, 10, 60, 40]]),
        pred_classes=torch.tensor([0, 1]),
        scores=torch.tensor([0.9, 0.2]),
    )
    truth = [
        {"bbox": [41, 11, 19, 28], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    ]
    figure = draw_detections(image, found, truth, metadata, threshold=0.5)
    left, right = figure.axes
    assert left.get_title() == "detections of score ≥ 0.5: 1"
    assert right.get_title() == "ground truth: 1"
    # Both sides have boxes, each in its class's colour.
    for axes, color in ((left, CLASS_COLORS[0]), (right, CLASS_COLORS[1])):
        drawn = np.asarray(axes.images[0].get_array()).reshape(-1, 3)
        toward = np.array(to_rgb(color)) * 255 - 128
        assert ((drawn - 128.0) @ toward > 0.4 * toward @ toward).sum() > 500
    assert pixels_of(figure, tmp_path / "detections.png").std() > 10
    nothing = draw_detections(image, found[:0], [], metadata, threshold=0.5)
    assert pixels_of(nothing, tmp_path / "nothing.png").shape[0] > 400


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
    with pytest.raises(UserError, match="another image would also be drawn as"):
        wiring("--input", str(images), str(images / "0.png"), "--num", "1")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "j.json").exists()
    with pytest.raises(UserError, match="no dataset 'nowhere' is registered"):
        visualize_detections(
            ["--config-file", PLAIN, "--output", str(tmp_path), "--dataset", "nowhere", *SMALL]
        )
