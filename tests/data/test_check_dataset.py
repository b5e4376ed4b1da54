"""``dgnet check``: what it says of each kind of bad dataset, and of good ones."""

import math
import shlex
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.checked_sets import DETECTION, KEYPOINT, change, found, inspect
from helpers.coco_sets import BOXES, HEIGHT, WIDTH, Splits

from dgnet_cli import check_dataset
from dgnet_det.errors import UserError


def test_good_dataset(splits: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(splits.train.path(1), splits.train.images / "not listed.jpg")
    report = inspect(splits)
    assert (report["errors"], report["warnings"]) == ([], [])
    train, val = report["datasets"]
    assert (train["images"], train["images_with_boxes"], train["boxes"]) == (8, 8, 24)
    assert (train["images_not_listed"], val["images_not_listed"]) == (1, 0)
    assert val["classes"] == [{"name": "kite", "boxes": 24, "images": 8}]
    assert train["boxes_per_image"] == {"median": 3, "max": 3}
    assert train["image_sizes"]["most_common"] == [WIDTH, HEIGHT]
    # Sides √(w·h): √600 = 24.5, √1200 = 34.6, √768 = 27.7, eight of each
    assert list(train["small_medium_large"].values()) == [16, 8, 0]
    assert train["box_sides_in_pixels"]["p50"] == pytest.approx(math.sqrt(768))
    assert train["height_by_width"]["p95"] == pytest.approx(3)  # 48 / 16
    printed = capsys.readouterr().out
    assert "no errors" in printed
    assert "24 (100.0%) in 8 images" in printed


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"images": [', "no valid JSON: "),
        ("<annotation/>", "dgnet import converts"),
        ("\ufeff{}", "starts with a byte-order mark: save it"),
        ('[{"image_id": 1, "score": 0.5}]', "detections, with scores"),
        ('{"images": [1], "categories": [1], "annotations": {}}', "'annotations' is no list"),
        ('{"images": [], "categories": [1]}', "no list 'images', or an empty one"),
    ],
)
def test_files_that_are_no_coco(splits: Splits, content: str, part: str) -> None:
    splits.train.json.write_text(content, encoding="utf-8")
    assert part in found(inspect(splits), "errors", "unreadable")


def test_missing_file_or_folder(splits: Splits) -> None:
    splits.train.images.rename(splits.root / "away")
    assert "no such image folder" in found(inspect(splits), "errors", "unreadable")
    splits.train.json.unlink()
    (splits.root / "away").rename(splits.train.images)
    assert "no such annotation file" in found(inspect(splits), "errors", "unreadable")


SPOILED = [
    # Annotation 5, then image 2, of the training set
    ("error", 5, {"id": 1}, "duplicate-annotation-id", "annotation 1: another one has id 1 too: a"),
    ("error", 5, {"image_id": 99}, "unknown-image_id", "image_id 99 is not in 'images'"),
    ("error", 5, {"category_id": 9}, "unknown-category_id", "9 is not in 'categories'"),
    ("error", 5, {"bbox": [1, 2, 3]}, "annotation-bbox", "5: bbox [1, 2, 3] is not [x, y, width"),
    ("error", 5, {"bbox": [9, 9, -9, 5]}, "bbox-negative", "annotation 5: bbox [9, 9, -9, 5] has"),
    ("error", 5, {"bbox": [97, 3, 5, 5]}, "bbox-outside", "lies outside its image of 96 × 72"),
    ("error", 5, {"segmentation": [4.0, 6]}, "annotation-segmentation", "is not a mask: polygons"),
    ("error", 5, {"ignore": 1}, "annotation-ignore", "ignore 1 is not 0, as Detectron2 needs"),
    ("error", 5, {"attributes": {"rotation": 90.0}}, "bbox-rotation", "by its rotation of 90°: a"),
    ("error", 5, {"rotation": "30"}, "bbox-rotation", "by its rotation of 30°"),
    ("warning", 5, {"bbox": [3, 3, 0, 9]}, "bbox-no-area", "bbox [3, 3, 0, 9] has no area"),
    ("warning", 5, {"bbox": [90, 3, 9, 9]}, "bbox-over-edge", "reaches over its image of 96 × 72"),
    ("warning", 5, {"bbox": BOXES[0]}, "duplicate-box", "annotation 5: its image has the same box"),
    ("warning", 5, {"segmentation": [[1.0, 2, 3, 4]]}, "mask-corners", "leaves it out, box and al"),
    ("error", 2, {"width": "96"}, "image-width", "width '96' is not a whole number of pixels"),
    ("error", 2, {"id": "2"}, "image-id", "train2.jpg: id '2' is not a whole number, without quo"),
    ("error", 2, {"file_name": "gone.jpg"}, "missing-image", "give the folder that the file names"),
    ("error", 2, {"file_name": "d/train2.jpg"}, "missing-image", "folder has train2.jpg: a copy b"),
    ("error", 2, {"file_name": "d\\TRAIN2.jpg"}, "missing-image", "folder has train2.jpg: a copy"),
    ("error", 2, {"width": 192, "height": 144}, "image-size", "96 × 72 pixels, but width and heig"),
    ("warning", 2, {"file_name": "train1.jpg"}, "duplicate-file-name", "train1.jpg is listed twic"),
]  # fmt: skip


@pytest.mark.parametrize(("severity", "number", "values", "kind", "part"), SPOILED)
def test_spoiled_entries(
    splits: Splits, severity: str, number: int, values: dict[str, Any], kind: str, part: str
) -> None:
    change(splits, "annotations" if number == 5 else "images", number, **values)
    assert part in found(inspect(splits), f"{severity}s", kind)


@pytest.mark.parametrize("degrees", [0, 180.0, "0", None, "left"])
def test_rotation_that_keeps_the_box(splits: Splits, degrees: Any) -> None:
    change(splits, "annotations", 5, attributes={"rotation": degrees, "occluded": False})
    assert inspect(splits)["errors"] == []


def test_image_ids_given_twice_and_no_object(splits: Splits) -> None:
    splits.train.coco["images"][2] = "a.jpg"
    change(splits, "images", 2, id=1)
    report = inspect(splits)
    kinds = [finding["kind"] for finding in report["errors"]]
    assert kinds == ["duplicate-image-id", "image-form", "unknown-image_id"]
    assert "image number 3: 'a.jpg' is no object" in report["errors"][1]["line"]


def test_names_in_two_unicode_forms(splits: Splits) -> None:
    splits.train.path(2).rename(splits.train.images / "Cafe\u0301.jpg")
    change(splits, "images", 2, file_name="Caf\u00e9.jpg")
    line = found(inspect(splits), "errors", "missing-image")
    assert "in another Unicode form: a copy by dgnet import finds it" in line


def test_nothing_to_train_on(splits: Splits) -> None:
    for values, part in (
        ({"segmentation": [[4, 6, 34, 26]]}, "or lacks polygons of three corners: a copy by dgnet"),
        ({"segmentation": [], "iscrowd": 1}, "every object has iscrowd 1"),
        (None, "no annotations to train on"),
    ):
        annotations = splits.train.coco["annotations"]
        splits.train.coco["annotations"] = [a | values for a in annotations] if values else []
        splits.train.write()
        assert part in found(inspect(splits), "errors", "no-annotations")


@pytest.mark.parametrize(
    ("convert", "kind", "part"),
    [
        (
            lambda x, y, w, h: [x, y, x + w, y + h], "bbox-format",
            "8 of 24 boxes reach out of their image as [x, y, width, height], such as"
            " [50, 40, 90, 70], and all fit as [x1, y1, x2, y2]",
        ),
        (
            lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "bbox-format",
            "all fit as [centre x, centre y, width, height]",
        ),
        (
            lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT], "bbox-normalised",
            "all boxes are fractions of their image",
        ),
    ],
    ids=["corners", "centres", "fractions"],
)  # fmt: skip
def test_boxes_in_another_format(
    splits: Splits, convert: Callable[..., list[float]], kind: str, part: str
) -> None:
    for each in splits.train.coco["annotations"]:
        each["bbox"] = convert(*each["bbox"])
    splits.train.write()
    assert part in found(inspect(splits), "errors", kind)


KITE, BALL = {"id": 3, "name": "kite", "supercategory": "toy"}, {"id": 4, "name": "ball"}
TOY = {"id": 0, "name": "toy", "supercategory": "none"}  # as Roboflow's root


@pytest.mark.parametrize(
    ("train", "val", "kinds", "part"),
    [
        ([KITE, BALL | {"id": 3}], [KITE], ["duplicate-category-id"], "ball: another one has id 3"),
        ([KITE, KITE | {"id": 4}], [KITE], ["category-names"], "two categories are called 'kite'"),
        ([KITE, BALL], [KITE, BALL | {"name": "bird"}], ["categories-differ", "empty-class"],
         "class 2 by id is bird, there ball"),
        ([KITE, BALL], [BALL | {"id": 3}, KITE | {"id": 4}], ["categories-differ", "empty-class"],
         "class 1 by id is ball, there kite"),
        ([KITE, BALL], [KITE, BALL], ["empty-class"], "category 'ball' has no box"),
        ([TOY, KITE], [TOY, KITE], ["empty-class", "root-category"],
         "'toy', id 0, is the supercategory of others, without a box, as Roboflow"),
        ([TOY | {"name": "kite"}, KITE | {"supercategory": "kite"}],) * 2
        + (["root-category"], "'kite', id 0, is the supercategory of others, without a box"),
    ],
)  # fmt: skip
def test_categories(
    splits: Splits, train: list[dict], val: list[dict], kinds: list[str], part: str
) -> None:
    for split, categories in ((splits.train, train), (splits.val, val)):
        split.coco["categories"] = categories
        split.write()
    report = inspect(splits)
    findings = report["errors"] + report["warnings"]
    assert sorted({finding["kind"] for finding in findings} - {"few-boxes"}) == kinds
    assert part in findings[0]["line"]


def test_images_and_classes_with_few_boxes(splits: Splits) -> None:
    annotations = splits.train.coco["annotations"]
    splits.train.coco["annotations"] = [a for a in annotations if a["image_id"] not in (2, 3)]
    splits.train.write()
    empty, few = inspect(splits)["warnings"]
    assert "image train2.jpg has no box: training leaves it out (and 1 more)" in empty["line"]
    assert "category 'kite' has 18 boxes to learn from" in few["line"]
    empty, _ = inspect(splits, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False")["warnings"]
    assert "training takes it as one without objects" in empty["line"]


def test_images_that_do_not_decode_are_shared_or_copied(splits: Splits) -> None:
    path = splits.train.path(2)
    content = path.read_bytes()
    path.write_bytes(content[:700])
    line = found(inspect(splits), "errors", "undecodable-image")
    assert "train2.jpg: the image does not decode: image file is truncated" in line
    shutil.copy(splits.train.path(1), path)
    line = found(inspect(splits), "warnings", "duplicate-image")
    assert "the same file as train1.jpg" in line
    path.write_bytes(content)
    splits.val.path(1).rename(splits.val.images / "train1.jpg")
    splits.val.coco["images"][0]["file_name"] = "train1.jpg"
    splits.val.write()
    line = found(inspect(splits), "warnings", "shared-name")
    assert "train1.jpg has the name of train1.jpg of" in line
    shutil.copy(splits.train.path(1), splits.val.path(1))
    line = found(inspect(splits), "errors", "shared-image")
    assert "train1.jpg is the same image as train1.jpg" in line


def test_errors_of_a_kind_are_counted(splits: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (2, 3, 5):
        splits.train.path(number).unlink()
    (finding,) = inspect(splits)["errors"]
    assert (finding["count"], finding["cases"][1:]) == (3, ["train3.jpg", "train5.jpg"])
    assert finding["line"].endswith("(and 2 more)")
    assert "also train3.jpg, train5.jpg" in capsys.readouterr().out


def test_without_validation_set_the_file_is_for_both(
    splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    change(splits, "annotations", 5, area=...)
    assert inspect(splits)["errors"] == []  # training needs no areas
    with pytest.raises(UserError, match="annotation 5: has no 'area': give a number"):
        check_dataset.main([str(splits.train.json), str(splits.train.images)])
    assert "1 error:" in capsys.readouterr().out


def test_the_next_command(splits: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the data, and the config and keys that they were checked with."""
    words = ["--config-file", DETECTION, "SOLVER.IMS_PER_BATCH", "4"]
    inspect(splits, *words)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == f"Next: {shlex.join(['dgnet', 'train', *words, *splits.overrides])}"
    check_dataset.main([str(splits.train.json), str(splits.train.images)])
    split, last = capsys.readouterr().out.strip().splitlines()[-2:]
    assert f"dgnet import {splits.train.json} NEW_FOLDER --images" in split
    assert "faster_rcnn_DG_R_50_residual_FPN_1x.yaml DATASETS.TRAIN_JSON" in last


def test_one_sided_keypoints(splits: Splits) -> None:
    for each in splits.train.coco["annotations"]:
        each |= {"keypoints": [5, 5, 2] * 2, "num_keypoints": 2}
    splits.train.coco["categories"][0]["keypoints"] = ["left_eye", "right_ear"]
    splits.train.write()
    opts = ["--config-file", KEYPOINT, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "2"]
    lines = {w["kind"]: w["line"] for w in inspect(splits, *opts)["warnings"]}
    assert "keypoints left_eye, right_ear: of one side by their names" in lines["keypoint-sides"]


def test_suggested_anchors(splits: Splits) -> None:
    """Boxes of one small size, twice as high as wide, in images that are not resized."""
    rng = np.random.default_rng(0)
    for each in splits.train.coco["annotations"]:
        each["bbox"] = [*rng.uniform(0, 50, 2).tolist(), 6.0, 12.0]
    splits.train.write()
    override = ["INPUT.MIN_SIZE_TRAIN", "(0,)"]
    report = inspect(splits, *override)
    fits = report["anchors"]
    assert fits["box_sizes"]["p50"] == pytest.approx(math.sqrt(72))
    assert fits["config"]["sizes"] == [[32.0], [64.0], [128.0], [256.0], [512.0]]
    # The best of 32-pixel anchors is 22.6 × 45.3 and covers the box: 72 / 1024
    assert fits["config"]["overlap"] == pytest.approx(72 / 1024, rel=1e-3)
    assert fits["config"]["meet"] == 0
    assert [finding["kind"] for finding in report["warnings"]] == ["anchors"]
    suggested = fits["suggested"]
    assert suggested["sizes"][0][0] == pytest.approx(math.sqrt(72), rel=0.2)
    assert suggested["meet"] > 0.9
    again = inspect(splits, *override, *shlex.split(suggested["override"]))
    assert again["anchors"]["config"]["meet"] == suggested["meet"]
    assert again["warnings"] == []
