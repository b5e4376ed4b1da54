"""What training checks of its data, and how images are read for it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

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
from helpers.coco_sets import Splits
from PIL import Image

from dgnet_det.config import get_cfg
from dgnet_det.data import CheckedDatasetMapper, check_datasets
from dgnet_det.errors import UserError, user_message

TRAIN, VAL = "dgnet_test_train", "dgnet_test_val"


@pytest.fixture(autouse=True)
def registered(splits: Splits) -> Iterator[None]:
    for name, split in ((TRAIN, splits.train), (VAL, splits.val)):
        register_coco_instances(name, {}, str(split.json), str(split.images))
    yield
    for name in (TRAIN, VAL):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (VAL,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 1
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (60,), 60
    cfg.DATALOADER.NUM_WORKERS = 1
    cfg.SOLVER.IMS_PER_BATCH = 1
    return cfg


def message_of(cfg: CfgNode) -> str:
    with pytest.raises(UserError) as caught:
        check_datasets(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_dataset_passes(splits: Splits, cfg: CfgNode) -> None:
    splits.train.coco["annotations"][0]["bbox"] = [10, 10, 0, 5]  # as a few of COCO's
    splits.train.coco["annotations"][1]["bbox"] = [70, 50, 30, 30]  # reaches beyond the image
    del splits.train.coco["annotations"][2]["area"]  # which evaluation alone needs
    del splits.val.coco["annotations"]  # which training alone needs
    splits.train.write()
    splits.val.write()
    check_datasets(cfg, (TRAIN, VAL, TRAIN))
    del splits.train.coco["annotations"][0]["area"]  # which evaluation alone needs
    splits.train.write()
    check_datasets(cfg, [TRAIN])
    with pytest.raises(UserError, match="has no 'area'"):
        check_datasets(cfg, [TRAIN], evaluated=True)


def test_missing_files(splits: Splits, cfg: CfgNode) -> None:
    """All missing images are found, by one listing of each folder."""
    (splits.train.images / "deeper").mkdir()
    splits.train.path(8).rename(splits.train.images / "deeper/8.jpg")
    splits.train.coco["images"][7]["file_name"] = "deeper/8.jpg"
    splits.train.write()
    check_datasets(cfg, (TRAIN,))
    for number in (7, 8):
        splits.train.path(number).unlink()
    message = message_of(cfg)
    assert message.startswith(f"{splits.train.path(7)}: no such image, listed in")
    assert "DETECTRON2_DATASETS" in message
    assert message.endswith("(and 1 more)")
    splits.train.images.rename(splits.root / "elsewhere")
    assert message_of(cfg).startswith(f"{splits.train.images}: no such image folder of {TRAIN}")
    splits.train.json.unlink()
    assert message_of(cfg).startswith(f"{splits.train.json}: no such annotation file of {TRAIN}")


def test_unknown_name_and_bad_content(splits: Splits, cfg: CfgNode) -> None:
    """One of the many cases of test_check_dataset.py."""
    splits.val.coco["annotations"][1]["bbox"] = [1, 2, 3]
    splits.val.write()
    assert message_of(cfg).startswith(f"{splits.val.json}: annotation 2: bbox [1, 2, 3] is not")
    for key in ("TEST", "TRAIN"):
        cfg.DATASETS[key] = ("tree",)
        assert message_of(cfg).startswith(f"tree (DATASETS.{key}): no such dataset is registered")
        cfg.DATASETS[key] = ()


@pytest.mark.parametrize(
    ("architecture", "group"), [("GeneralizedRCNN", "ROI_HEADS"), ("RetinaNet", "RETINANET")]
)
def test_number_of_classes(cfg: CfgNode, architecture: str, group: str) -> None:
    cfg.MODEL.META_ARCHITECTURE = architecture
    check_datasets(cfg, (TRAIN,))
    cfg.MODEL[group].NUM_CLASSES = 80
    assert message_of(cfg).startswith(
        f"MODEL.{group}.NUM_CLASSES 80: {TRAIN} has 1 categories: set the key to that number"
    )


def test_training_against_test_set(
    splits: Splits, cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Shared images are told and let pass: learning the test images by heart is a way to see
    whether a model learns at all. So is what else may be meant. Other classes are an error, and are
    told of rather than their number."""
    for split in (splits.train, splits.val):
        split.coco["images"][0]["file_name"] = "../train/train1.jpg"
    splits.train.coco["annotations"] = splits.train.coco["annotations"][3:]
    splits.train.write()
    splits.val.write()
    with caplog.at_level(logging.WARNING, "dgnet_det"):
        check_datasets(cfg, (TRAIN, VAL))
    empty, shared = caplog.messages
    assert empty.endswith("image ../train/train1.jpg has no box: training leaves it out")
    assert shared.startswith(f"{splits.val.json}: {splits.train.path(1).resolve()} is in the train")
    splits.val.coco["categories"].append({"id": 4, "name": "bird"})
    splits.val.write()
    message = message_of(cfg)
    assert message.startswith(f"{splits.val.json}: not the categories of {splits.train.json}")
    assert "class 2 by id is bird, there missing" in message


def test_mapper_maps(splits: Splits, cfg: CfgNode) -> None:
    mapped = CheckedDatasetMapper(cfg, is_train=False)(DatasetCatalog.get(VAL)[1])
    pixels = np.asarray(Image.open(splits.val.path(2)).resize((80, 60), Image.Resampling.BILINEAR))
    # BGR is Detectron2's default.
    assert torch.equal(mapped["image"], torch.tensor(pixels[..., ::-1].copy()).permute(2, 0, 1))
    trained = CheckedDatasetMapper(cfg, is_train=True)(DatasetCatalog.get(TRAIN)[1])
    assert trained["instances"].gt_classes.tolist() == [0, 0, 0]


DEEP = Image.fromarray(np.full((72, 96), 4000, np.uint16))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_bytes(b"no image"), "the image does not decode: "),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "the image does not decode: "),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: Image.new("RGB", (8, 6)).save(path), "not of the size in its annotation: "),
        (lambda path: DEEP.save(path, "png"), "pixels of more than 8 bits"),
    ],
)
def test_mapper_names_the_image(
    splits: Splits, cfg: CfgNode, spoil: Callable[[Path], object], expected: str
) -> None:
    path = splits.train.path(3)
    spoil(path)
    for is_train in (True, False):
        mapper = CheckedDatasetMapper(cfg, is_train=is_train)
        with pytest.raises(UserError) as caught:
            mapper(DatasetCatalog.get(TRAIN)[2])
        assert str(caught.value).startswith(f"{path}: {expected}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("training", [True, False])
def test_mapper_in_a_worker(splits: Splits, cfg: CfgNode, training: bool) -> None:
    path = splits.train.path(3)
    path.write_bytes(b"no image")
    mapper = CheckedDatasetMapper(cfg, is_train=training)
    if training:
        loader = build_detection_train_loader(cfg, mapper=mapper)
    else:
        loader = build_detection_test_loader(cfg, TRAIN, mapper=mapper)
    with pytest.raises(UserError) as caught:
        for _ in zip(range(30), loader, strict=False):
            pass
    assert "worker process" in str(caught.value)
    assert (user_message(caught.value) or "").startswith(f"{path}: the image does not decode: ")


def test_mapper_leaves_other_errors_alone(cfg: CfgNode) -> None:
    mapper = CheckedDatasetMapper(cfg, is_train=True)
    image = DatasetCatalog.get(TRAIN)[0]
    image["annotations"][0]["bbox_mode"] = "no mode"
    with pytest.raises(Exception) as caught:  # noqa: PT011
        mapper(image)
    assert not isinstance(caught.value, UserError)
