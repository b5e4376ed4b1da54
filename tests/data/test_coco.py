"""Reading of COCO JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_sets import Splits, random_coco
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json

from configs import ROOT
from dgnet_det.data import check_datasets, load_cfg_with_data
from dgnet_det.data.classes import dataset_class_names
from dgnet_det.data.coco import category_names, forget, load_dicts, read_coco
from dgnet_det.errors import UserError

CONFIG = str(ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml")


@pytest.mark.parametrize("masks", [True, False])
def test_dicts_are_those_of_detectron2(tmp_path: Path, masks: bool) -> None:
    """Of boxes, keypoints and masks: run-length encodings, compressed or not, and polygons, one of
    which has too few corners, and one object no other."""
    coco, _ = random_coco(
        np.random.default_rng(0), images=20, categories=5, masks=True, keypoints=True
    )
    objects = coco["annotations"]
    triangle, line = [1.0, 2, 30, 4, 5, 60], [1.0, 2, 30, 4]
    for k, polygons in enumerate(([triangle], [line, triangle], [line])):
        objects[k]["segmentation"] = polygons
    objects[3]["segmentation"] = {"size": [640, 640], "counts": [70, 50, 640 * 640 - 120]}
    del objects[4]["segmentation"], objects[5]["keypoints"]
    objects[2]["iscrowd"] = objects[3]["iscrowd"] = 0
    if not masks:
        for each in objects:
            each.pop("segmentation", None)
    coco["images"].reverse()
    path = tmp_path / "objects.json"
    path.write_text(json.dumps(coco))
    before = json.loads(path.read_text())
    ours = load_dicts("ours", str(path), "folder", masks=masks)
    assert ours == load_coco_json(str(path), "folder", "theirs")
    mine, theirs = MetadataCatalog.get("ours"), MetadataCatalog.get("theirs")
    assert mine.thing_classes == theirs.thing_classes
    assert mine.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id
    assert read_coco(str(path)) == before
    for name in ("ours", "theirs"):
        MetadataCatalog.remove(name)
    forget(str(path))


def test_a_file_is_parsed_once(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the config, the checks, the classes and the images."""
    parsed: list[str] = []
    load = json.load
    monkeypatch.setattr(json, "load", lambda file: parsed.append(file.name) or load(file))
    cfg = load_cfg_with_data(CONFIG, splits.overrides)
    check_datasets(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert len(DatasetCatalog.get(name)) == 8
        assert dataset_class_names([name]) == ["kite"]
    assert sorted(parsed) == sorted([str(splits.train.json), str(splits.val.json)])


def test_a_changed_file_is_parsed_anew(splits: Splits) -> None:
    path = str(splits.train.json)
    assert category_names(path) == ["kite"]
    splits.train.coco["categories"].append({"id": 1, "name": "ball"})
    splits.train.write()
    assert category_names(path) == ["ball", "kite"]


@pytest.mark.parametrize(
    ("categories", "problem"),
    [
        ([{"id": 1}], "has no 'name': give a text"),
        ([{"name": "a"}], "has no 'id': give a whole number"),
        ([{"id": "3", "name": "a"}], "id '3' is not a whole number, without quotes"),
        ([{"id": 3, "name": " "}], "name ' ' is not a text"),
        (["a"], "'a' is no object"),
    ],
)
def test_categories_that_say_too_little(categories: list, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [{"id": 1}], "categories": categories}))
    with pytest.raises(UserError) as caught:
        category_names(str(path))
    assert str(caught.value).startswith(f"{path}: a category of 'categories': {problem}")
