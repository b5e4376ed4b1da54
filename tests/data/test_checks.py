"""Each mistake in a user's data, and the line that it gets."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from dgnet_det.config import get_cfg
from dgnet_det.data import (
    CheckedDatasetMapper,
    check_datasets,
    find_images,
    read_image,
    spread_images,
)
from dgnet_det.errors import UserError, user_message

NAME = "dgnet_test_set"


class Dataset:
    """Three images of 80 × 60 pixels and a box in each, which tests then spoil."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.json = root / "set.json"
        self.images = root / "images"
        self.images.mkdir()
        for k in range(1, 4):
            Image.new("RGB", (80, 60), (k, 2 * k, 3 * k)).save(self.images / f"{k}.png")
        self.coco: dict[str, Any] = {
            "images": [
                {"id": k, "file_name": f"{k}.png", "width": 80, "height": 60} for k in range(1, 4)
            ],
            "annotations": [
                {
                    "id": k,
                    "image_id": k,
                    "category_id": 7,
                    "bbox": [10.0, 20.0, 30.0, 15.0],
                    "area": 450.0,
                    "iscrowd": 0,
                }
                for k in range(1, 4)
            ],
            "categories": [{"id": 7, "name": "kite"}, {"id": 9, "name": "ball"}],
        }
        self.write()
        register_coco_instances(NAME, {}, str(self.json), str(self.images))

    def write(self) -> None:
        self.json.write_text(json.dumps(self.coco))


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[Dataset]:
    yield Dataset(tmp_path)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAME,), (NAME,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (60,), 60
    cfg.DATALOADER.NUM_WORKERS = 1
    cfg.SOLVER.IMS_PER_BATCH = 1
    return cfg


def message_of(cfg: CfgNode, names: tuple[str, ...] = (NAME,)) -> str:
    with pytest.raises(UserError) as caught:
        check_datasets(cfg, names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_dataset_passes(dataset: Dataset, cfg: CfgNode) -> None:
    dataset.coco["annotations"][0]["bbox"] = [10, 10, 0, 5]  # as a few of COCO's
    dataset.coco["annotations"][1]["bbox"] = [70, 50, 30, 30]  # reaches beyond the image
    dataset.write()
    check_datasets(cfg, (NAME, NAME))


def test_unknown_name(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN = ("tree_crown",)
    message = message_of(cfg, ("tree_crown",))
    assert message.startswith("DATASETS.TRAIN: no dataset 'tree_crown' is registered")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("tree_crown",)
    assert message_of(cfg, ("tree_crown",)).startswith("DATASETS.TEST: no dataset 'tree_crown'")


def test_missing_files(dataset: Dataset, cfg: CfgNode) -> None:
    (dataset.images / "2.png").unlink()
    message = message_of(cfg)
    missing = dataset.images / "2.png"
    assert message.startswith(f"{missing}: no such image, listed in {dataset.json}")
    assert "DETECTRON2_DATASETS" in message
    dataset.images.rename(dataset.root / "elsewhere")
    assert message_of(cfg).startswith(f"{dataset.images}: no such image folder of {NAME}")
    dataset.json.unlink()
    assert message_of(cfg).startswith(f"{dataset.json}: no such annotation file of {NAME}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"images": [', "no valid JSON"),
        ("[]", "the top level is no object"),
        ('{"images": [], "categories": [1]}', "no list 'images', or an empty one"),
        ('{"images": [1]}', "no list 'categories', or an empty one"),
    ],
)
def test_no_coco_json(dataset: Dataset, cfg: CfgNode, text: str, expected: str) -> None:
    dataset.json.write_text(text)
    message = message_of(cfg)
    assert message.startswith(f"{dataset.json}: ")
    assert expected in message


def set_box(*box: object) -> Callable[[dict], None]:
    return lambda coco: coco["annotations"][1].update(bbox=list(box))


def set_key(**values: object) -> Callable[[dict], None]:
    return lambda coco: coco["annotations"][1].update(values)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (set_key(category_id=8), "annotation 2: category_id 8 is not in 'categories'"),
        (set_key(image_id=99), "annotation 2: image_id 99 is not in 'images'"),
        (set_key(id=1), "two annotations share one id"),
        (lambda coco: coco["annotations"][1].pop("bbox"), "annotation 2: no 'bbox'"),
        (lambda coco: coco["annotations"][1].pop("area"), "annotation 2: no 'area'"),
        (lambda coco: coco["images"][1].pop("width"), "image 2.png has no 'width'"),
        (lambda coco: coco["images"][1].update(id=1), "two images share one id"),
        (lambda coco: coco.update(annotations=[]), "no annotations to train on"),
        (set_box(1, 2, 3), "annotation 2: bbox [1, 2, 3] is no"),
        (set_box(1, 2, -3, 4), "annotation 2: bbox [1, 2, -3, 4] has a negative"),
        (set_box(1, 2, 3, -4), "annotation 2: bbox [1, 2, 3, -4] has a negative"),
        (set_box(81, 2, 3, 4), "annotation 2: bbox [81, 2, 3, 4] lies outside"),
        (set_box(2, 61, 3, 4), "annotation 2: bbox [2, 61, 3, 4] lies outside"),
        (set_box(-9, 2, 3, 4), "annotation 2: bbox [-9, 2, 3, 4] lies outside"),
        (set_box(2, -9, 3, 4), "annotation 2: bbox [2, -9, 3, 4] lies outside"),
        (set_box(1, 2, 3, math.nan), "annotation 2: bbox [1, 2, 3, nan] is no"),
        (set_box(1, 2, math.inf, 4), "annotation 2: bbox [1, 2, inf, 4] is no"),
        (set_box(1, 2, "3", 4), "annotation 2: bbox [1, 2, '3', 4] is no"),
        (set_key(bbox=None), "annotation 2: bbox None is no"),
    ],
)
def test_bad_entries(
    dataset: Dataset, cfg: CfgNode, spoil: Callable[[dict], None], expected: str
) -> None:
    spoil(dataset.coco)
    dataset.write()
    message = message_of(cfg)
    assert message.startswith(f"{dataset.json}: ")
    assert expected in message


def test_what_only_evaluation_or_training_needs(dataset: Dataset, cfg: CfgNode) -> None:
    for annotation in dataset.coco["annotations"]:
        del annotation["area"]
    dataset.write()
    cfg.DATASETS.TEST = ()
    check_datasets(cfg, (NAME,))
    del dataset.coco["annotations"]
    dataset.write()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (NAME,)
    check_datasets(cfg, (NAME,))


@pytest.mark.parametrize(
    ("architecture", "group"), [("GeneralizedRCNN", "ROI_HEADS"), ("RetinaNet", "RETINANET")]
)
def test_number_of_classes(dataset: Dataset, cfg: CfgNode, architecture: str, group: str) -> None:
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 2
    check_datasets(cfg, (NAME,))
    cfg.MODEL[group].NUM_CLASSES = 80
    assert message_of(cfg).startswith(
        f"MODEL.{group}.NUM_CLASSES 80: {NAME} has 2 categories: set the key to that number"
    )


def test_what_may_be_meant_is_logged(
    dataset: Dataset, cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    dataset.coco["annotations"][2] |= {"image_id": 2, "bbox": [5, 5, 9, 9]}
    dataset.write()
    check_datasets(cfg, (NAME,))
    assert caplog.messages == [
        f"{dataset.json}: image 3.png has no box: training leaves it out",
        f"{dataset.json}: category 'ball' has no box",
    ]


def test_training_against_test_set(
    dataset: Dataset, cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    other = dataset.root / "val.json"
    dataset.coco["images"] = dataset.coco["images"][:1]
    dataset.coco["annotations"] = dataset.coco["annotations"][:1]
    other.write_text(json.dumps(dataset.coco))
    register_coco_instances(str(other), {}, str(other), str(dataset.images))
    cfg.DATASETS.TEST = (str(other),)
    try:
        # Learning the test images by heart is a way to see whether a model learns at all.
        check_datasets(cfg, (NAME, str(other)))
        (line,) = [line for line in caplog.messages if "training set" in line]
        assert line.startswith(f"{other}: {dataset.images / '1.png'} is in the training set too")
        dataset.coco["categories"][1]["name"] = "bird"
        other.write_text(json.dumps(dataset.coco))
        message = message_of(cfg, (NAME, str(other)))
    finally:
        DatasetCatalog.remove(str(other))
        MetadataCatalog.remove(str(other))
    assert message.startswith(f"{other}: not the categories of {dataset.json}")
    assert f"ball only in {dataset.json}; bird only in {other}" in message


def test_mapper_maps(dataset: Dataset, cfg: CfgNode) -> None:
    # BGR is Detectron2's default: image 2 is (2, 4, 6) in RGB.
    mapped = CheckedDatasetMapper(cfg, is_train=False)(DatasetCatalog.get(NAME)[1])
    expected = torch.tensor([6, 4, 2], dtype=torch.uint8)[:, None, None].expand(3, 60, 80)
    assert torch.equal(mapped["image"], expected)
    trained = CheckedDatasetMapper(cfg, is_train=True)(DatasetCatalog.get(NAME)[1])
    assert trained["instances"].gt_classes.tolist() == [0]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_bytes(b"no image"), "the image does not decode: "),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "the image does not decode: "),
        (lambda path: path.unlink(), "no such image"),
        (lambda path: Image.new("RGB", (8, 6)).save(path), "not of the size in its annotation: "),
    ],
)
def test_mapper_names_the_image(
    dataset: Dataset, cfg: CfgNode, spoil: Callable[[Path], object], expected: str
) -> None:
    path = dataset.images / "3.png"
    spoil(path)
    for is_train in (True, False):
        mapper = CheckedDatasetMapper(cfg, is_train=is_train)
        with pytest.raises(UserError) as caught:
            mapper(DatasetCatalog.get(NAME)[2])
        assert str(caught.value).startswith(f"{path}: {expected}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("training", [True, False])
def test_mapper_in_a_worker(dataset: Dataset, cfg: CfgNode, training: bool) -> None:
    path = dataset.images / "3.png"
    path.write_bytes(b"no image")
    mapper = CheckedDatasetMapper(cfg, is_train=training)
    if training:
        loader = build_detection_train_loader(cfg, mapper=mapper)
    else:
        loader = build_detection_test_loader(cfg, NAME, mapper=mapper)
    with pytest.raises(UserError) as caught:
        for _ in zip(range(20), loader, strict=False):
            pass
    assert "worker process" in str(caught.value)
    assert user_message(caught.value).startswith(f"{path}: the image does not decode: ")


def test_mapper_leaves_other_errors_alone(dataset: Dataset, cfg: CfgNode) -> None:
    mapper = CheckedDatasetMapper(cfg, is_train=True)
    image = DatasetCatalog.get(NAME)[0]
    image["annotations"][0]["bbox_mode"] = "no mode"
    with pytest.raises(Exception) as caught:  # noqa: PT011
        mapper(image)
    assert not isinstance(caught.value, UserError)


def test_find_images(dataset: Dataset, tmp_path: Path) -> None:
    (dataset.images / "notes.txt").touch()
    names = [f"{k}.png" for k in range(1, 4)]
    assert find_images([str(dataset.images)]) == [dataset.images / name for name in names]
    one = dataset.images / "2.png"
    assert find_images([str(one)]) == [one]
    with pytest.raises(UserError, match=r"gone\.png: no such image or folder"):
        find_images([str(tmp_path / "gone.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no image in this folder"):
        find_images([str(tmp_path / "empty")])


def test_read_image(dataset: Dataset) -> None:
    path = dataset.images / "1.png"
    assert np.array_equal(read_image(path, "RGB")[0, 0], [1, 2, 3])
    assert np.array_equal(read_image(path, "BGR")[0, 0], [3, 2, 1])
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png: the image does not decode"):
        read_image(path, "RGB")


def test_spread_images(dataset: Dataset) -> None:
    def ids(num: int) -> list[int]:
        return [image["image_id"] for image in spread_images(NAME, num)]

    assert ids(1) == [1]
    assert ids(2) == [1, 2]
    assert ids(3) == ids(9) == [1, 2, 3]
    with pytest.raises(UserError, match="--num 0: give at least 1"):
        ids(0)
