"""Detectors on numpy images; two that find the same, and two that do not."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from helpers.detectors import SMALL, config, save, small_predictor
from PIL import Image

from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import (
    Comparison,
    Description,
    Detector,
    Predictor,
    compare_detections,
    load_predictor,
    same_detections,
)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)


faster = cache(lambda: small_predictor("faster"))


@pytest.mark.parametrize("kind", ["faster", "retinanet", "mask", "keypoint", "cascade"])
def test_detections_are_those_of_detectron2(kind: str, image: np.ndarray) -> None:
    predictor = small_predictor(kind)
    resized = np.array(Image.fromarray(image[:, :, ::-1]).resize((96, 128), Image.BILINEAR))
    prepared = torch.tensor(resized.transpose(2, 0, 1))
    with torch.no_grad():
        (found,) = predictor.model([{"image": prepared, "height": 120, "width": 90}])
    expected = found["instances"]
    found = predictor(image)
    assert len(expected) > 0
    assert found.image_size == (120, 90)
    assert found.get_fields().keys() == expected.get_fields().keys()
    assert found.has("pred_masks") == (kind in ("mask", "cascade"))
    assert found.has("pred_keypoints") == (kind == "keypoint")
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    for name in expected.get_fields().keys() - {"pred_boxes"}:
        torch.testing.assert_close(found.get(name), expected.get(name))


def test_channels_are_taken_in_the_order_that_is_named(image: np.ndarray) -> None:
    for image_format in ("BGR", "RGB"):
        detector = small_predictor("faster", "INPUT.FORMAT", image_format)
        assert torch.equal(detector.prepare(image, "RGB"), detector.prepare(image[:, :, ::-1]))
        as_given = torch.from_numpy(image.transpose(2, 0, 1))
        opts = ("INPUT.FORMAT", image_format, "INPUT.MIN_SIZE_TEST", "0")
        assert torch.equal(small_predictor("faster", *opts).prepare(image, image_format), as_given)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"shape \[8, 8\], uint8: give \[height, width, 3\]"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \[8, 8, 4\]"),
        (np.zeros((8, 8, 3), np.float32), "float32: give"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \[0, 8, 3\]"),
        (None, "an image of type NoneType: give an array"),
        ("photo.jpg", "an image of type str: give an array, such as dgnet_det.data.read_image"),
        (Image.new("RGB", (8, 8)), "an image of type Image: give an array"),
    ],
)
def test_what_is_no_image(broken: Any, message: str) -> None:
    detector = faster()
    with pytest.raises(UserError, match=message):
        detector(broken)
    with pytest.raises(UserError, match="image_format 'bgr': choose BGR or RGB"):
        detector(np.zeros((8, 8, 3), np.uint8), "bgr")


def test_the_network_sees_what_the_config_says() -> None:
    """Pixels in INPUT.FORMAT, normalised and resized for testing."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:] = (10, 20, 30)  # BGR
    seen: list[torch.Tensor] = []
    backbone = faster().model.backbone
    with backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):  # type: ignore
        faster()(pixels)
    (batch,) = seen
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = (torch.tensor([30.0, 20.0, 10.0]) - mean) / std
    torch.testing.assert_close(batch[0, :, 50, 50], expected)
    assert batch.shape == (1, 3, 96, 128)


def test_whole_checkpoints_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")

    def load(name: str, *opts: str, dataset: str = "") -> Predictor:
        weights = ["MODEL.WEIGHTS", str(folder / name) if name else ""]
        return load_predictor(load_cfg(config("faster"), [*SMALL, *opts, *weights]), dataset)

    predictor = faster()
    save(predictor, str(folder / "model.pth"))
    loaded = load("model.pth").model.state_dict()
    assert all(torch.equal(loaded[k], x) for k, x in predictor.model.state_dict().items())
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: empty"):
        load("")
    with pytest.raises(UserError, match=r"no\.pth"):
        load("no.pth")
    state = predictor.model.state_dict()
    heads = {name: x for name, x in state.items() if "roi_heads" not in name}
    torch.save({"model": heads}, folder / "half.pth")
    with pytest.raises(UserError, match=r"missing .*roi_heads\..* whole detector"):
        load("half.pth")

    # The classes are those that the checkpoint was trained for, not the config's.
    names = ["kite", "ball"]
    two = small_predictor("faster", "MODEL.ROI_HEADS.NUM_CLASSES", "2")
    torch.save({"model": two.model.state_dict(), "class_names": names}, folder / "two.pth")
    assert load("two.pth").class_names == names
    with pytest.raises(UserError, match=r"number of classes"):
        load("model.pth", "MODEL.ROI_HEADS.NUM_CLASSES", "2")
    DatasetCatalog.register("three_classes", list)
    MetadataCatalog.get("three_classes").thing_classes = ["kite", "ball", "cup"]
    with pytest.raises(UserError, match="kite, ball, but the data have kite, ball, cup: eval"):
        load("two.pth", dataset="three_classes")
    DatasetCatalog.remove("three_classes")
    MetadataCatalog.remove("three_classes")


IMAGE = np.zeros((96, 128, 3), np.uint8)
BOX, OTHER = [1.0, 2.0, 30.0, 40.0], [50.0, 50.0, 60.0, 70.0]


def fixed(
    boxes: Sequence[Sequence[float]], scores: Sequence[float], classes: Sequence[int]
) -> Detector:
    """Always finds the same."""
    found = Instances(
        (96, 128),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )
    return Detector(lambda image: found, Description(["a", "b"], "BGR", 0, 0, {}))


def test_order_and_rounding_do_not_count() -> None:
    both = fixed([BOX, OTHER], [0.9, 0.8], [0, 1])
    swapped = fixed([OTHER, [1.0, 2.0, 30.05, 40.0]], [0.8, 0.9005], [1, 0])
    result = compare_detections(both, swapped, IMAGE)
    assert result[:3] == (2, 2, 0)
    assert result.differences == pytest.approx({"boxes": 0.05, "scores": 0.0005}, rel=1e-3)
    assert same_detections([result])


@pytest.mark.parametrize(
    ("boxes", "scores", "classes", "unmatched"),
    [
        ([BOX, OTHER], [0.9, 0.8], [0, 0], 2),  # another class
        ([BOX], [0.9], [0], 1),  # one is missing
        ([], [], [], 2),
        ([BOX, BOX], [0.9, 0.9], [0, 0], 2),  # one twice
        ([BOX, [51.0, 50.0, 60.0, 70.0]], [0.9, 0.8], [0, 1], 2),
        ([BOX, OTHER], [0.9, 0.81], [0, 1], 2),
    ],
)
def test_what_differs(boxes: list, scores: list, classes: list, unmatched: int) -> None:
    both = fixed([BOX, OTHER], [0.9, 0.8], [0, 1])
    result = compare_detections(both, fixed(boxes, scores, classes), IMAGE)
    assert result.unmatched == unmatched
    assert not same_detections([result])


def test_one_in_a_hundred_may_be_unmatched() -> None:
    assert same_detections([Comparison(100, 99, 1, {})])
    assert not same_detections([Comparison(20, 19, 1, {}), Comparison(0, 0, 0, {})])
