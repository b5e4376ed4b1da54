"""tools/check_dataset.py: what it says of each kind of bad dataset, and of good ones."""

import json
import math
import runpy
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import BOXES, HEIGHT, WIDTH, Splits
from detectron2.data.detection_utils import read_image
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs import ROOT
from dgnet_det.data.image_checks import read_image_file
from dgnet_det.errors import UserError

TOOL = runpy.run_path(str(ROOT / "tools/check_dataset.py"))
Spoil = Callable[[Splits], object]


def inspect(splits: Splits, *arguments: str) -> dict[str, Any]:
    """The tool's JSON. Its exit must be as the JSON says, and nothing else be left behind."""
    out = splits.root / "out" / "report.json"
    sets = [[str(split.json), str(split.images)] for split in (splits.train, splits.val)]
    failed = None
    try:
        TOOL["main"]([*sets[0], "--val", *sets[1], "--json", str(out), *arguments])
    except UserError as error:
        failed = str(error)
    report = json.loads(out.read_text())
    assert bool(report["errors"]) is (failed is not None)
    if failed:
        assert failed.startswith(report["errors"][0]["line"])
    assert [path.name for path in out.parent.iterdir()] == ["report.json"]
    return report


def test_good_dataset(splits: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    report = inspect(splits)
    assert (report["errors"], report["warnings"]) == ([], [])
    train, val = report["datasets"]
    assert (train["images"], train["images_with_boxes"], train["boxes"]) == (8, 8, 24)
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


# Each takes the training set apart in its own way. Of the JSON:


def edited(change: Callable[[dict[str, Any]], object], *names: str) -> Spoil:
    """The content of JSON files, by default of the training set's, is changed."""

    def spoil(splits: Splits) -> None:
        for split in [getattr(splits, name) for name in names or ["train"]]:
            change(split.coco)
            split.write()

    return spoil


def entry(group: str, number: int, split: str = "train", **values: Any) -> Spoil:
    """An entry's values become others; those that are ``...`` are taken out."""

    def change(coco: dict[str, Any]) -> None:
        changed = {**coco[group][number - 1], **values}
        coco[group][number - 1] = {k: v for k, v in changed.items() if v is not ...}

    return edited(change, split)


annotation = partial(entry, "annotations", 5)
image = partial(entry, "images", 2)


def coco(**values: Any) -> Spoil:
    return edited(lambda coco: coco.update(values))


def all_boxes(convert: Callable[..., list[float]]) -> Spoil:
    return edited(lambda coco: [a.update(bbox=convert(*a["bbox"])) for a in coco["annotations"]])


def text(content: str) -> Spoil:
    return lambda splits: splits.train.json.write_text(content, encoding="utf-8")


def no_boxes_in(*images: int) -> Spoil:
    """Images 1 and so on, which have three boxes each."""
    return edited(lambda coco: coco.update(annotations=[
        a for a in coco["annotations"] if a["image_id"] not in images]))  # fmt: skip


only_crowds = edited(lambda coco: [each.update(iscrowd=1) for each in coco["annotations"]])
unused_class = edited(
    lambda coco: coco["categories"].append({"id": 4, "name": "ball"}), "train", "val"
)


def val_classes(*names: str) -> Spoil:
    """Both sets have two classes; those of the validation set are ``names``."""

    def spoil(splits: Splits) -> None:
        for split, two in (("train", ("kite", "ball")), ("val", names)):
            categories = [{"id": 3 + k, "name": name} for k, name in enumerate(two)]
            edited(lambda coco, new=categories: coco.update(categories=new), split)(splits)
            entry("annotations", 1, split, category_id=4)(splits)

    return spoil


# … and of the images:


def saved(
    make: Callable[[Image.Image], Image.Image], suffix: str = ".jpg", **options: Any
) -> Spoil:
    """Image 2 as ``make`` makes it, in a file format."""

    def spoil(splits: Splits) -> None:
        path = splits.train.path(2)
        with Image.open(path) as picture:
            made = make(picture)
        path.unlink()
        made.save(path.with_suffix(suffix), **options)
        image(file_name=path.with_suffix(suffix).name)(splits)

    return spoil


EXIF = Image.Exif()
EXIF[0x112] = 6  # to be turned by 90°
turned = saved(lambda picture: picture.copy(), exif=EXIF)


def copied(source: str, target: str) -> Spoil:
    """Image 2 of the split ``target`` becomes a copy of image 1 of ``source``."""
    return lambda splits: shutil.copy(
        getattr(splits, source).path(1), getattr(splits, target).path(2)
    )


def namesakes(splits: Splits) -> None:
    splits.val.path(2).rename(splits.val.images / "train1.jpg")
    entry("images", 2, "val", file_name="train1.jpg")(splits)


def truncated(splits: Splits) -> None:
    path = splits.train.path(2)
    path.write_bytes(path.read_bytes()[:700])


def sixteen_bits(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 256)


ERRORS = {
    # id: (spoil, kind, part of the line)
    "no json": (lambda s: s.train.json.unlink(), "unreadable", "no such annotation file"),
    "no folder": (
        lambda s: s.train.images.rename(s.root / "away"), "unreadable", "no such image folder"
    ),
    "broken json": (text('{"images": ['), "unreadable", "no valid JSON: "),
    "another format": (text("<annotation/>"), "unreadable", "tools/import_dataset.py converts"),
    "byte-order mark": (text("\ufeff{}"), "unreadable", "starts with a byte-order mark: save it"),
    "results": (text('[{"image_id": 1, "score": 0.5}]'), "unreadable", "detections, with scores"),
    "annotations": (coco(annotations={}), "unreadable", "'annotations' is no list"),
    "no images": (coco(images=[]), "unreadable", "no list 'images', or an empty one"),
    "no object": (coco(images=["a.jpg"]), "image-form", "image number 1: 'a.jpg' is no object"),
    "image size": (image(width="96"), "image-width", "width '96' is not a whole number of pixels"),
    "image id": (image(id=1), "duplicate-image-id", "train2.jpg: another one has id 1"),
    "text as image id": (image(id="2"), "image-id", "train2.jpg: id '2' is not a whole number, w"),
    "no annotations": (coco(annotations=[]), "no-annotations", "no annotations to train on"),
    "only crowds": (only_crowds, "no-annotations", "every box has iscrowd 1"),
    "annotation id": (annotation(id=1), "duplicate-annotation-id", "annotation 1: another one has"),
    "image_id": (annotation(image_id=99), "unknown-image_id", "image_id 99 is not in 'images'"),
    "category_id": (annotation(category_id=9), "unknown-category_id", "category_id 9 is not in"),
    "category id": (
        coco(categories=[{"id": 3, "name": "kite"}, {"id": 3, "name": "ball"}]),
        "duplicate-category-id", "category ball: another one has id 3",
    ),
    "category name": (
        coco(categories=[{"id": 3, "name": "kite"}, {"id": 4, "name": "kite"}]),
        "category-names", "two categories are called 'kite'",
    ),
    "three numbers": (
        annotation(bbox=[1, 2, 3]), "annotation-bbox", "annotation 5: bbox [1, 2, 3] is not [x, y,"
    ),
    "flat mask": (annotation(segmentation=[4.0, 6.0]), "annotation-segmentation", "not a mask: p"),
    "ignore": (annotation(ignore=1), "annotation-ignore", "ignore 1 is not 0, as Detectron2"),
    "evaluation": (
        entry("annotations", 2, "val", area=...), "annotation-area", "2: has no 'area': give a num"
    ),
    "negative": (annotation(bbox=[30, 30, -9, 5]), "bbox-negative", "annotation 5: bbox [30, 30,"),
    "outside": (annotation(bbox=[97, 3, 5, 5]), "bbox-outside", "outside its image of 96 × 72"),
    "corners": (
        all_boxes(lambda x, y, w, h: [x, y, x + w, y + h]),
        "bbox-format", "8 of 24 boxes reach out of their image as [x, y, width, height], such as"
        " [50, 40, 90, 70], and all fit as [x1, y1, x2, y2]",
    ),
    "centres": (
        all_boxes(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]),
        "bbox-format", "all fit as [centre x, centre y, width, height]",
    ),
    "fractions": (
        all_boxes(lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]),
        "bbox-normalised", "all boxes are fractions of their image",
    ),
    "missing image": (
        lambda s: s.train.path(2).unlink(), "missing-image", "train/train2.jpg: no such image"
    ),
    "folder in name": (image(file_name="d/train2.jpg"), "missing-image", "folder has train2.jpg"),
    "backslashes": (image(file_name="d\\x.jpg"), "missing-image", "file_name has backslashes"),
    "truncated": (truncated, "undecodable-image", "does not decode: image file is truncated"),
    "other size": (
        saved(lambda picture: picture.resize((48, 36))),
        "image-size", "train2.jpg: 48 × 36 pixels, but width and height say 96 × 72",
    ),
    "turned": (turned, "image-size", "its EXIF tag turns it by 90°; save it upright"),
    "16 bits": (saved(sixteen_bits, ".png"), "image-16-bit", "convert all images to 8 bits by one"),
    "classes differ": (
        val_classes("kite", "bird"), "categories-differ", "class 2 by id is bird, there ball"
    ),
    "class order": (
        val_classes("ball", "kite"), "categories-differ", "class 1 by id is ball, there kite"
    ),
    "in both": (copied("train", "val"), "shared-image", "val2.jpg is the same image as train1.jpg"),
}  # fmt: skip

WARNINGS = {
    "no box": (no_boxes_in(2, 3), "empty-image", "train2.jpg has no box: training leaves it out"),
    "no area": (annotation(bbox=[3, 3, 0, 9]), "bbox-no-area", "bbox [3, 3, 0, 9] has no area"),
    "over the edge": (annotation(bbox=[90, 3, 9, 9]), "bbox-over-edge", "reaches over its image"),
    "line": (annotation(segmentation=[[1.0, 2, 3, 4]]), "mask-corners", "no polygon of three"),
    "twice": (annotation(bbox=BOXES[0]), "duplicate-box", "annotation 5: its image has the same"),
    "listed twice": (image(file_name="train1.jpg"), "duplicate-file-name", "jpg is listed twice"),
    "same file": (copied("train", "train"), "duplicate-image", "the same file as train1.jpg"),
    "class without boxes": (unused_class, "empty-class", "category 'ball' has no box"),
    "few boxes": (no_boxes_in(1, 2), "few-boxes", "category 'kite' has 18 boxes to learn from"),
    "turned size": (
        lambda s: (turned(s), image(width=HEIGHT, height=WIDTH)(s)),
        "image-turned", "its EXIF tag turns it",
    ),
    "palette": (saved(lambda p: p.convert("P"), ".png"), "image-mode-P", "a palette"),
    "animation": (
        saved(lambda p: p.copy(), ".gif", save_all=True, append_images=[Image.new("L", (96, 72))]),
        "image-animation", "holds several pictures: only the first is read",
    ),
    "same name": (namesakes, "shared-name", "train1.jpg has the name of train1.jpg of"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("severity", "spoil", "kind", "part"),
    [("errors", *case) for case in ERRORS.values()]
    + [("warnings", *case) for case in WARNINGS.values()],
    ids=[*ERRORS, *WARNINGS],
)
def test_bad_dataset(splits: Splits, severity: str, spoil: Spoil, kind: str, part: str) -> None:
    spoil(splits)
    report = inspect(splits)
    found = {finding["kind"]: finding["line"] for finding in report[severity]}
    assert kind in found
    line = found[kind]
    assert part in line
    assert "\n" not in line
    assert line.startswith(str(splits.root))
    if severity == "warnings":
        assert not report["errors"]
    elif "no object" not in line and kind != "duplicate-image-id":  # whose boxes have no image
        assert len(report["errors"]) == 1


MASK = str(ROOT / "configs/COCO-InstanceSegmentation/mask_rcnn_DG_R_50_residual_FPN_1x.yaml")
TRIANGLE = [[4.0, 6.0, 34.0, 6.0, 34.0, 26.0]]


def runs(height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    """A random mask in COCO's compressed runs, by its own tools."""
    mask = np.random.default_rng(0).integers(0, 2, (height, width), dtype=np.uint8)
    mask[:, 20:80] = 1  # a long run
    return {
        "size": [height, width],
        "counts": mask_tools.encode(np.asfortranarray(mask))["counts"].decode(),
    }


@pytest.mark.parametrize(
    ("mask", "severity", "part"),
    [
        (TRIANGLE, None, ""),
        (runs(), None, ""),
        ({"size": [HEIGHT, WIDTH], "counts": [70, HEIGHT * WIDTH - 70]}, None, ""),
        (..., "errors", "annotation 5: has no 'segmentation': give a mask, as MODEL.MASK_ON wants"),
        ([], "errors", "segmentation [] is not a mask"),
        ("garbage", "errors", "segmentation 'garbage' is not a mask"),
        ({"size": [HEIGHT, WIDTH], "counts": "garbage"}, "errors", "its mask does not fill the"),
        ({"size": [HEIGHT, WIDTH], "counts": "0000"}, "errors", "does not fill the image of 96 ×"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "errors", "does not fill the image of 96 × 72"),
        ({"size": [HEIGHT, WIDTH], "counts": [70, 10]}, "errors", "its mask does not fill the im"),
        ({"size": [HEIGHT], "counts": [70]}, "errors", "is not a mask, as MODEL.MASK_ON wants"),
        (runs(WIDTH, HEIGHT), "errors", "its mask does not fill the image of 96 × 72"),
        ([[1.0, 2.0, 3.0, 4.0]], "warnings", "no polygon of three corners"),
    ],
)
def test_masks(splits: Splits, mask: Any, severity: str | None, part: str) -> None:
    for split in (splits.train, splits.val):
        for each in split.coco["annotations"]:
            each["segmentation"] = TRIANGLE
        split.write()
    annotation(segmentation=mask)(splits)
    report = inspect(splits, "--config-file", MASK, "INPUT.MASK_FORMAT", "bitmask")
    lines = {key: [finding["line"] for finding in report[key]] for key in ("errors", "warnings")}
    if severity is None:
        assert lines == {"errors": [], "warnings": []}
    else:
        (line,) = lines[severity]
        assert part in line
    if isinstance(mask, dict) and severity is None:
        (finding,) = inspect(splits, "--config-file", MASK)["errors"]
        assert (
            "annotation 5: its mask is no polygon: set INPUT.MASK_FORMAT bitmask" in finding["line"]
        )


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
    annotation(area=...)(splits)
    assert inspect(splits)["errors"] == []  # training needs no areas
    with pytest.raises(UserError, match="annotation 5: has no 'area'"):
        TOOL["main"]([str(splits.train.json), str(splits.train.images)])
    assert "1 error:" in capsys.readouterr().out


def test_images_that_are_not_listed(splits: Splits) -> None:
    (splits.train.images / "notes.txt").touch()
    shutil.copy(splits.train.path(1), splits.train.images / "more.jpg")
    assert [data["images_not_listed"] for data in inspect(splits)["datasets"]] == [1, 0]


def test_annotation_id_0(splits: Splits) -> None:
    """COCO's evaluation really counts the detection as false, which is why there is a warning."""
    for each in splits.val.coco["annotations"]:
        each["id"] -= 1
    splits.val.write()
    (warning,) = inspect(splits)["warnings"]
    assert warning["kind"] == "annotation-id-0"
    found = []
    for first in (0, 1):
        for k, each in enumerate(splits.val.coco["annotations"]):
            each["id"] = first + k
        splits.val.write()
        truth = COCO(str(splits.val.json))
        results = truth.loadRes([dict(a, score=1.0) for a in splits.val.coco["annotations"]])
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        found.append(evaluation.stats[0])
    assert found[1] == pytest.approx(1)
    assert found[0] < 0.99


def test_suggested_anchors(splits: Splits) -> None:
    """Boxes of one small size, twice as high as wide, in images that are not resized."""
    rng = np.random.default_rng(0)
    all_boxes(lambda *_: [*rng.uniform(0, 50, 2).tolist(), 6.0, 12.0])(splits)
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_size(tmp_path: Path, orientation: int) -> None:
    """Width and height after turning, as Detectron2 reads the file."""
    path = tmp_path / "a.jpg"
    picture = Image.new("RGB", (6, 4))
    exif = picture.getexif()
    exif[0x112] = orientation
    picture.save(path, exif=exif)
    file = read_image_file(str(path))
    assert not isinstance(file, UserError)
    assert file.upright_size == read_image(str(path)).shape[1::-1]
