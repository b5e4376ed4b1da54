"""Datasets that a config names by their files."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.configs import ROOT

from dgnet_det.data import check_datasets, load_cfg_with_data
from dgnet_det.data.coco import keypoint_pairs
from dgnet_det.data.own import class_names, dataset_class_names, register_own_datasets
from dgnet_det.errors import UserError

COCO = str(ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml")
TREES = str(
    ROOT / "configs/Tree-Crowns/faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml"
)  # fmt: skip


def dataset(folder: Path, name: str, categories: dict[int, str]) -> list[str]:
    """A dataset of one image; its overrides."""
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 8}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": k, "bbox": [1, 1, 5, 5], "area": 25,
             "iscrowd": 0}
            for k in categories
        ][:1],
        "categories": [{"id": k, "name": category} for k, category in categories.items()],
    }  # fmt: skip
    path = folder / f"{name.lower()}.json"
    path.write_text(json.dumps(coco))
    return [f"DATASETS.{name}_JSON", str(path), f"DATASETS.{name}_IMAGES", str(folder / "images")]


FRUIT = {7: "fig", 2: "apple", 30: "pear"}


@pytest.mark.parametrize("config", [COCO, TREES])
def test_the_config_follows_the_data(config: str, tmp_path: Path) -> None:
    opts = dataset(tmp_path, "TRAIN", FRUIT) + dataset(tmp_path, "VAL", FRUIT)
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
    cfg = load_cfg_with_data(COCO, dataset(tmp_path, split, FRUIT))
    assert len(cfg.DATASETS[key]) == 1
    assert cfg.DATASETS[other] == ()
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_changed_files_are_registered_anew(tmp_path: Path) -> None:
    (name,) = load_cfg_with_data(COCO, dataset(tmp_path, "TRAIN", FRUIT)).DATASETS.TRAIN
    DatasetCatalog.get(name)
    cfg = load_cfg_with_data(COCO, dataset(tmp_path, "TRAIN", {1: "tree"}))
    DatasetCatalog.get(name)  # Detectron2 does not let the classes of a name change
    assert MetadataCatalog.get(name).thing_classes == ["tree"]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1


def test_the_written_config_names_the_same_data(tmp_path: Path) -> None:
    cfg = load_cfg_with_data(COCO, dataset(tmp_path, "TRAIN", FRUIT))
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    assert yaml.safe_load(load_cfg_with_data(str(path)).dump()) == yaml.safe_load(cfg.dump())


def test_another_process_registers_them_for_itself(tmp_path: Path) -> None:
    """What a spawned process is given is the config alone."""
    cfg = load_cfg_with_data(
        COCO, dataset(tmp_path, "TRAIN", FRUIT) + dataset(tmp_path, "VAL", FRUIT)
    )
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_own_datasets(cfg)
    assert [len(DatasetCatalog.get(name)) for name in names] == [1, 1]


def test_where_the_data_are_not_the_config_still_loads(tmp_path: Path) -> None:
    opts = dataset(tmp_path, "TRAIN", FRUIT)
    path = tmp_path / "config.yaml"
    path.write_text(load_cfg_with_data(COCO, opts).dump())
    Path(opts[1]).unlink()
    assert load_cfg_with_data(str(path)).MODEL.ROI_HEADS.NUM_CLASSES == 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["MODEL.ROI_HEADS.NUM_CLASSES", "4"],
            "NUM_CLASSES 4: .*train.json has 3 categories; leave",
        ),
        (["DATASETS.TEST", "('tree_crowns_val',)"], "DATASETS.TEST .*tree_crowns_val.*VAL_JSON"),
        (["DATASETS.VAL_JSON", "x.json"], "DATASETS.VAL_IMAGES: empty: .*x.json"),
        (["DATASETS.VAL_IMAGES", "x"], "DATASETS.VAL_JSON: empty: x needs both"),
    ],
)
def test_contradictions(extra: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_cfg_with_data(COCO, [*dataset(tmp_path, "TRAIN", FRUIT), *extra])


def test_names_of_classes(tmp_path: Path) -> None:
    cfg = load_cfg_with_data(COCO, dataset(tmp_path, "TRAIN", FRUIT)).clone()
    assert dataset_class_names(["no such dataset", *cfg.DATASETS.TRAIN]) == ["apple", "fig", "pear"]
    assert dataset_class_names([]) == []
    assert class_names(cfg) == ["apple", "fig", "pear"]
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    assert class_names(cfg) == ["class 0", "class 1"]
    assert class_names(load_cfg_with_data(COCO))[:2] == [
        "person",
        "bicycle",
    ]  # Detectron2 knows COCO's


KEYPOINT = str(ROOT / "configs/COCO-Keypoints/keypoint_rcnn_DG_R_50_residual_FPN_1x.yaml")
SIGMAS = ["TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.05, 0.05]"]
POSES: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "width": 80, "height": 64}],
    "annotations": [
        {
            "id": 3, "image_id": 7, "category_id": 1, "iscrowd": 0, "bbox": [4, 10, 30, 40],
            "area": 1200, "keypoints": [9, 15, 2, 24, 20, 2, 14, 40, 1], "num_keypoints": 3,
        },
        # A crowd, as in COCO: no keypoints.
        {
            "id": 4, "image_id": 7, "category_id": 1, "iscrowd": 1, "bbox": [4, 10, 30, 40],
            "area": 1200,
        },
    ],
    "categories": [{"id": 1, "name": "bird", "keypoints": ["beak", "left_wing", "right_wing"]}],
}  # fmt: skip


def check_poses(folder: Path, coco: dict[str, Any], *opts: str) -> str:
    """Load the config for the data and check them, as ``tools/train_net.py`` does first."""
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
    config = str(ROOT / "configs/COCO-InstanceSegmentation/mask_rcnn_DG_R_50_residual_FPN_1x.yaml")
    opts = dataset(tmp_path, "TRAIN", FRUIT)
    assert load_cfg_with_data(config, opts).INPUT.MASK_FORMAT == "polygon"
    coco = json.loads(Path(opts[1]).read_text())
    coco["annotations"][0]["segmentation"] = {"size": [8, 9], "counts": [0, 72]}
    Path(opts[1]).write_text(json.dumps(coco))
    assert load_cfg_with_data(config, opts).INPUT.MASK_FORMAT == "bitmask"
    given = ["INPUT.MASK_FORMAT", "polygon"]
    assert load_cfg_with_data(config, [*opts, *given]).INPUT.MASK_FORMAT == "polygon"


@pytest.mark.parametrize(
    ("opts", "path", "value", "message"),
    [
        ([], (), None, "OKS_SIGMAS: 17 values, but .* has 3 keypoints: give one"),
        (
            [*SIGMAS, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "4"], (), None,
            "NUM_KEYPOINTS 4: .* has 3 keypoints; leave the key out",
        ),
        (SIGMAS, ("categories", 0, "keypoints"), [], "needs the keypoints' names"),
        (
            SIGMAS, ("annotations", 0, "keypoints"), [1, 2, 2],
            r"annotation 3: keypoints \[1, 2, 2\] is not 9 numbers: x, y and visibility of NUM_K",
        ),
    ],
    ids=["no sigmas", "another number", "no names", "too few"],
)  # fmt: skip
def test_what_keypoints_need(
    tmp_path: Path, opts: list[str], path: tuple, value: Any, message: str
) -> None:
    coco: Any = copy.deepcopy(POSES)
    place = coco
    for key in path[:-1]:
        place = place[key]
    if path:
        place[path[-1]] = value
    with pytest.raises(UserError, match=message):
        check_poses(tmp_path, coco, *opts)
