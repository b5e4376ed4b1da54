"""What tools/measure_padding.py measures."""

import json
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from PIL import Image

from configs import ROOT
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.model import build_model
from dgnet_det.padding_effect import Crop, _average_precision, _changes, cut
from dgnet_det.wiring import dynamic_graphs

main = run_path(str(ROOT / "tools" / "measure_padding.py"))["main"]
CONFIGS = ROOT / "configs" / "Tree-Crowns"
DYNAMIC = str(CONFIGS / "faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml")
PLAIN = str(CONFIGS / "faster_rcnn_MobileNetV2_FPN_tree_crowns.yaml")
NAME = "dgnet_test_padding"


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    """Three registered images of 80 × 100 pixels with one box each."""
    generator = np.random.default_rng(0)
    boxes = [[30, 20, 40, 40], [0, 0, 30, 30], [50, 30, 50, 50]]
    for k in range(3):
        noise = generator.integers(0, 255, (80, 100, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{k}.png")
    coco = {
        "images": [
            {"id": k, "file_name": f"{k}.png", "width": 100, "height": 80} for k in range(3)
        ],
        "annotations": [
            {"id": k + 1, "image_id": k, "category_id": 1, "bbox": box, "area": 9, "iscrowd": 0}
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "tree"}],
    }
    annotation = tmp_path / "set.json"
    annotation.write_text(json.dumps(coco))
    register_coco_instances(NAME, {}, str(annotation), str(tmp_path))
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def detections(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Instances:
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def test_crops_are_central_and_keep_boxes_of_which_enough_remains(dataset: str) -> None:
    crops = cut(DatasetCatalog.get(dataset), [(40, 60), (100, 90)], "RGB")
    assert [tuple(crop.image.shape) for crop in crops] == [(3, 40, 60), (3, 80, 90), (3, 40, 60)]
    # 40 × 40 at (30, 20) in the crop from (20, 20); 30 × 30 at (0, 0) in the one from (5, 0);
    # of 50 × 50 at (50, 30) in the one from (20, 20), 30 × 30 remain, too little.
    boxes = [crop.boxes.tolist() for crop in crops]
    assert boxes == [[[10, 0, 50, 40]], [[0, 0, 25, 30]], []]
    assert [crop.classes for crop in crops] == [[0], [0], []]


def test_changes_of_detections() -> None:
    a = detections([[0, 0, 10, 10], [50, 50, 70, 70], [0, 0, 10, 10]], [0.9, 0.8, 0.7], [0, 0, 1])
    b = detections([[50, 51, 70, 72], [0, 0, 10, 10], [80, 0, 99, 9]], [0.75, 0.9, 0.5], [0, 0, 0])
    scores, boxes, appeared, disappeared = _changes([(a, b), (a, detections([], [], []))])
    assert (appeared, disappeared) == (1, 1 + 3)
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.05]))
    assert sorted(boxes.tolist()) == [0, 0, 0, 0, 0, 0, 1, 2]


def test_average_precision() -> None:
    boxes = np.array([[0, 0, 50, 50], [50, 50, 90, 99]], dtype=float)
    crops = [Crop(torch.zeros(3, 100, 100), boxes, [0, 1])]
    perfect = detections(boxes.tolist(), [0.9, 0.8], [0, 1])
    assert _average_precision(crops, [perfect]) == pytest.approx(100)
    # Class 0 is missed; class 1 has IoU 37 / 40, which passes 9 of 10 thresholds.
    half = detections([[50, 50, 87, 99]], [0.9], [1])
    assert _average_precision(crops, [half]) == pytest.approx(50 * 9 / 10)
    assert _average_precision(crops, [detections([], [], [])]) == 0
    assert np.isnan(_average_precision([Crop(crops[0].image, boxes[:0], [])], [perfect]))


def test_tool(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model(load_cfg(DYNAMIC, ["MODEL.WEIGHTS", ""]))
    for graph in dynamic_graphs(model).values():
        for parameter in graph.routers.parameters():
            torch.nn.init.normal_(parameter)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    output = tmp_path / "padding.json"
    arguments = ["--config-file", DYNAMIC, "--mate", "100x130", "--sizes", "40x60,70x33"]
    opts = ["DATASETS.TEST", f"('{dataset}',)", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    main([*arguments, "--json", str(output), *opts])
    results = json.loads(output.read_text())["results"]
    plain, pooled, masked = (results[name]["edge_weight"]["max"] for name in results)
    assert plain > 0.1
    assert masked < 1e-6 < pooled < 1e-3
    assert [result["appeared"] > 0 for result in results.values()] == [True, True, False]
    unmasked, masked = results["plain pooling"], results["padding masked"]
    assert unmasked["ap_together"] != unmasked["ap_alone"] == masked["ap_alone"]
    assert masked["ap_together"] == masked["ap_alone"]
    assert "padding masked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        (DYNAMIC, ["DATASETS.TEST", "()"], r"DATASETS.TEST: empty"),
        (PLAIN, [], "no wiring"),
    ],
)
def test_tool_errors(dataset: str, config: str, opts: list[str], message: str) -> None:
    opts = ["MODEL.WEIGHTS", "", "DATASETS.TEST", f"('{dataset}',)", *opts]
    with pytest.raises(UserError, match=message):
        main(["--config-file", config, "--mate", "64x64", "--sizes", "32x32", *opts])
    with pytest.raises(SystemExit):
        main(["--config-file", config, "--mate", "64", "--sizes", "32x32", *opts])
