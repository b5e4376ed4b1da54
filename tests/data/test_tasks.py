"""Masks and keypoints of users' own data."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import MetadataCatalog

from configs import ROOT
from dgnet_det.config import load_cfg
from dgnet_det.data.checks import check_datasets
from dgnet_det.errors import UserError

MASK = str(ROOT / "configs/COCO-InstanceSegmentation/mask_rcnn_DG_R_50_residual_FPN_1x.yaml")
KEYPOINT = str(ROOT / "configs/COCO-Keypoints/keypoint_rcnn_DG_R_50_residual_FPN_1x.yaml")
SIGMAS = ["TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.05, 0.05]"]
COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "width": 80, "height": 64}],
    "annotations": [
        {
            "id": 3, "image_id": 7, "category_id": 1, "iscrowd": 0, "bbox": [4, 10, 30, 40],
            "area": 1200, "segmentation": [[4, 10, 34, 10, 34, 50]],
            "keypoints": [9, 15, 2, 24, 20, 2, 14, 40, 1], "num_keypoints": 3,
        },
        # A crowd, as in COCO: no keypoints.
        {
            "id": 4, "image_id": 7, "category_id": 1, "iscrowd": 1, "bbox": [4, 10, 30, 40],
            "area": 1200,
        },
    ],
    "categories": [{"id": 1, "name": "bird", "keypoints": ["beak", "left_wing", "right_wing"]}],
}  # fmt: skip


def check(folder: Path, coco: dict[str, Any], config: str, *opts: str) -> str:
    """Load the config for the data and check them, as ``tools/train_net.py`` does first."""
    path = folder / "objects.json"
    path.write_text(json.dumps(coco))
    (folder / "a.png").touch()
    keys = ["DATASETS.TRAIN_JSON", str(path), "DATASETS.TRAIN_IMAGES", str(folder)]
    cfg = load_cfg(config, [*keys, *opts])
    check_datasets(cfg, cfg.DATASETS.TRAIN)
    if cfg.MODEL.KEYPOINT_ON:
        assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 3
    return str(path)


def test_keypoints_are_registered(tmp_path: Path) -> None:
    metadata = MetadataCatalog.get(check(tmp_path, COCO, KEYPOINT, *SIGMAS))
    assert metadata.keypoint_names == ["beak", "left_wing", "right_wing"]
    assert metadata.keypoint_flip_map == [("left_wing", "right_wing")]


def test_masks_are_accepted(tmp_path: Path) -> None:
    check(tmp_path, COCO, MASK)


@pytest.mark.parametrize(
    ("config", "opts", "path", "value", "message"),
    [
        (MASK, [], ("annotations", 0, "segmentation"), [], "annotation 3 has no 'segmentation'"),
        (KEYPOINT, [], (), None, "OKS_SIGMAS: 17 values, but .* has 3 keypoints: give one"),
        (
            KEYPOINT, [*SIGMAS, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "4"], (), None,
            "NUM_KEYPOINTS 4: .* has 3; leave the key out",
        ),
        (KEYPOINT, SIGMAS, ("categories", 0, "keypoints"), [], "needs the keypoints' names"),
        (
            KEYPOINT, SIGMAS, ("annotations", 0, "keypoints"), [1, 2, 2],
            "annotation 3 has 3 numbers as 'keypoints': every object needs 9",
        ),
    ],
    ids=["no mask", "no sigmas", "another number", "no names", "too few"],
)  # fmt: skip
def test_what_is_missing_is_named(
    tmp_path: Path, config: str, opts: list[str], path: tuple, value: Any, message: str
) -> None:
    coco: Any = copy.deepcopy(COCO)
    place = coco
    for key in path[:-1]:
        place = place[key]
    if path:
        place[path[-1]] = value
    with pytest.raises(UserError, match=message):
        check(tmp_path, coco, config, *opts)
