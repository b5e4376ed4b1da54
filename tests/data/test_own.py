"""Datasets that a config names by their files."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.checked_sets import DETECTION, KEYPOINT, MASK
from helpers.configs import ROOT

from dgnet_det.data import check_datasets, load_cfg_with_data
from dgnet_det.data.coco import keypoint_pairs
from dgnet_det.data.own import class_names, dataset_class_names, register_own_datasets
from dgnet_det.errors import UserError

TREES = ROOT / "configs/Tree-Crowns/faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml"
FRUIT = {7: "fig", 2: "apple", 30: "pear"}


def dataset(folder: Path, name: str = "TRAIN", categories: dict[int, str] = FRUIT) -> list[str]:
    """A dataset of one image; its overrides."""
    box = {"id": 1, "image_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 8}],
        "annotations": [box | {"category_id": next(iter(categories))}],
        "categories": [{"id": k, "name": category} for k, category in categories.items()],
    }
    path = folder / f"{name.lower()}.json"
    path.write_text(json.dumps(coco))
    return [f"DATASETS.{name}_JSON", str(path), f"DATASETS.{name}_IMAGES", str(folder / "images")]


@pytest.mark.parametrize("config", [DETECTION, str(TREES)])
def test_the_config_follows_the_data(config: str, tmp_path: Path) -> None:
    opts = dataset(tmp_path) + dataset(tmp_path, "VAL")
    opts += ["MODEL.ROI_HEADS.NUM_CLASSES", "3"]  # which agrees
    for _ in range(2):  # registering again is no error
        cfg = load_cfg_with_data(config, opts)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3
    for key, name in (("TRAIN", "train.json"), ("TEST", "val.json")):
        (registered,) = cfg.DATASETS[key]
        assert registered == str(tmp_path / name)
        (image,) = DatasetCatalog.get(registered)
        assert image["file_name"] == str(tmp_path / "images" / "a.png")
        assert MetadataCatalog.get(registered).thing_classes == ["apple", "fig", "pear"]
        assert image["annotations"][0]["category_id"] == 1  # id 7, the second by number


@pytest.mark.parametrize(
    ("split", "key", "other"), [("TRAIN", "TRAIN", "TEST"), ("VAL", "TEST", "TRAIN")]
)
def test_one_split_alone(split: str, key: str, other: str, tmp_path: Path) -> None:
    cfg = load_cfg_with_data(DETECTION, dataset(tmp_path, split))
    assert len(cfg.DATASETS[key]) == 1
    assert cfg.DATASETS[other] == ()
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_changed_files_are_registered_anew(tmp_path: Path) -> None:
    (name,) = load_cfg_with_data(DETECTION, dataset(tmp_path)).DATASETS.TRAIN
    DatasetCatalog.get(name)
    cfg = load_cfg_with_data(DETECTION, dataset(tmp_path, categories={1: "tree"}))
    DatasetCatalog.get(name)  # Detectron2 does not let the classes of a name change
    assert MetadataCatalog.get(name).thing_classes == ["tree"]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1


def test_the_written_config_names_the_same_data(tmp_path: Path) -> None:
    """Also where they are not there any more, and in a process that is given the config alone."""
    cfg = load_cfg_with_data(DETECTION, dataset(tmp_path))
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    assert yaml.safe_load(load_cfg_with_data(str(path)).dump()) == yaml.safe_load(cfg.dump())
    (name,) = cfg.DATASETS.TRAIN
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    register_own_datasets(cfg)
    assert len(DatasetCatalog.get(name)) == 1
    Path(name).unlink()
    assert load_cfg_with_data(str(path)).MODEL.ROI_HEADS.NUM_CLASSES == 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", "4"], "CLASSES 4: .*train.json has 3 categories; leave"),
        (["DATASETS.TEST", "('tree_crowns_val',)"], "DATASETS.TEST .*tree_crowns_val.*VAL_JSON"),
        (["DATASETS.VAL_JSON", "x.json"], "DATASETS.VAL_IMAGES: empty: .*x.json"),
        (["DATASETS.VAL_IMAGES", "x"], "DATASETS.VAL_JSON: empty: x needs both"),
    ],
)
def test_contradictions(extra: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_cfg_with_data(DETECTION, [*dataset(tmp_path), *extra])


def test_names_of_classes(tmp_path: Path) -> None:
    cfg = load_cfg_with_data(DETECTION, dataset(tmp_path)).clone()
    assert dataset_class_names(["no such dataset", *cfg.DATASETS.TRAIN]) == ["apple", "fig", "pear"]
    assert dataset_class_names([]) == []
    assert class_names(cfg) == ["apple", "fig", "pear"]
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    assert class_names(cfg) == ["class 0", "class 1"]
    # Detectron2 knows COCO's.
    assert class_names(load_cfg_with_data(DETECTION))[:2] == ["person", "bicycle"]


SIGMAS = ["TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.05, 0.05]"]
CROWD = {"id": 4, "image_id": 7, "category_id": 1, "iscrowd": 1, "bbox": [4, 10, 30, 40], "area": 9}
POSES: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "width": 80, "height": 64}],
    "annotations": [
        CROWD,  # without keypoints, as in COCO
        CROWD | {"id": 3, "iscrowd": 0, "num_keypoints": 3,
                 "keypoints": [9, 15, 2, 24, 20, 2, 14, 40, 1]},
    ],
    "categories": [{"id": 1, "name": "bird", "keypoints": ["beak", "left_wing", "right_wing"]}],
}  # fmt: skip


def check_poses(folder: Path, coco: dict[str, Any], *opts: str) -> str:
    """Load the config for the data and check them, as ``dgnet train`` does first."""
    path = folder / "poses.json"
    path.write_text(json.dumps(coco))
    (folder / "a.png").touch()
    keys = ["DATASETS.TRAIN_JSON", str(path), "DATASETS.TRAIN_IMAGES", str(folder)]
    cfg = load_cfg_with_data(KEYPOINT, [*keys, *opts])
    check_datasets(cfg, cfg.DATASETS.TRAIN)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 3
    return str(path)


def test_keypoints_are_registered(tmp_path: Path) -> None:
    metadata = MetadataCatalog.get(check_poses(tmp_path, POSES, *SIGMAS))
    assert metadata.keypoint_names == ["beak", "left_wing", "right_wing"]
    assert metadata.keypoint_flip_map == [("left_wing", "right_wing")]


@pytest.mark.parametrize(
    ("opts", "group", "values", "message"),
    [
        ([], "images", {}, "OKS_SIGMAS: 17 values, but .* has 3 keypoints: give one"),
        ([*SIGMAS, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "4"], "images", {},
         "NUM_KEYPOINTS 4: .* has 3 keypoints; leave the key out"),
        (SIGMAS, "categories", {"keypoints": []}, "needs the keypoints' names"),
        (SIGMAS, "annotations", {"keypoints": [1, 2, 2]},
         r"annotation 3: keypoints \[1, 2, 2\] is not 9 numbers: x, y and visibility of NUM_K"),
    ],
)  # fmt: skip
def test_what_keypoints_need(
    tmp_path: Path, opts: list[str], group: str, values: dict[str, Any], message: str
) -> None:
    coco = copy.deepcopy(POSES)
    coco[group][-1] |= values
    with pytest.raises(UserError, match=message):
        check_poses(tmp_path, coco, *opts)


@pytest.mark.parametrize(
    "names",
    [
        ["Left Eye", "Right Eye"], ["LEFT_EYE", "RIGHT_EYE"], ["LeftEye", "RightEye"],
        ["eye_left", "eye_right"], ["eyeleft", "eyeright"], ["Eye (left)", "Eye (right)"],
        ["upper-left-lip", "upper-right-lip"], ["l_eye", "r_eye"], ["L_eye", "R_eye"],
        ["eye_l", "eye_r"], ["EYE L", "EYE R"], ["eye.L", "eye.R"], ["eyeL", "eyeR"],
        ["LEye", "REye"], ["lEye", "rEye"], ["leye", "reye"], ["hand_l_1", "hand_r_1"],
        ["LF_hoof", "RF_hoof"], ["hoof_LF", "hoof_RF"], ["lt_eye", "rt_eye"],
        ["left_eye", "Right-Eye"], ["L", "R"],
    ],
)  # fmt: skip
def test_sides_of_keypoints(names: list[str]) -> None:
    middle = ["nose", "tail", "elbow", "root", "lip", "center", "upright"]
    pairs, _ = keypoint_pairs([*middle, *names[::-1]])
    assert pairs == [tuple(names)]


@pytest.mark.parametrize(
    ("names", "alone"),
    [
        (["left_eye", "right_ear"], ["left_eye", "right_ear"]),
        (["LEye", "nose"], ["LEye"]),
        (["EyeLeft", "eye_r"], ["EyeLeft", "eye_r"]),
        (["top", "tail", "shoulder", "elbow", "rear"], []),
    ],
)
def test_keypoints_of_one_side(names: list[str], alone: list[str]) -> None:
    assert keypoint_pairs(names) == ([], alone)


def test_masks_that_are_no_polygons(tmp_path: Path) -> None:
    """They need INPUT.MASK_FORMAT bitmask, which follows from the data, but for what is given."""
    opts = dataset(tmp_path)
    assert load_cfg_with_data(MASK, opts).INPUT.MASK_FORMAT == "polygon"
    coco = json.loads(Path(opts[1]).read_text())
    coco["annotations"][0]["segmentation"] = {"size": [8, 9], "counts": [0, 72]}
    Path(opts[1]).write_text(json.dumps(coco))
    assert load_cfg_with_data(MASK, opts).INPUT.MASK_FORMAT == "bitmask"
    given = ["INPUT.MASK_FORMAT", "polygon"]
    assert load_cfg_with_data(MASK, [*opts, *given]).INPUT.MASK_FORMAT == "polygon"
