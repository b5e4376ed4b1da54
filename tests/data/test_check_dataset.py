"""tools/check_dataset.py: what it says of each kind of bad dataset, and of good ones."""

import json
import math
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs import ROOT
from dgnet_det.config import get_cfg
from dgnet_det.data import anchors
from dgnet_det.data.image_checks import read_image_file
from dgnet_det.errors import UserError

TOOL = runpy.run_path(str(ROOT / "tools/check_dataset.py"))
WIDTH, HEIGHT = 96, 72
BOXES = [[4.0, 6.0, 30.0, 20.0], [50.0, 40.0, 40.0, 30.0], [20.0, 10.0, 16.0, 48.0]]


class Split:
    """Eight photographs of noise, three boxes in each, which tests then spoil."""

    def __init__(self, root: Path, name: str, seed: int) -> None:
        self.json = root / f"{name}.json"
        self.images = root / name
        self.images.mkdir()
        rng = np.random.default_rng(seed)
        self.coco: dict[str, Any] = {"images": [], "annotations": []}
        for k in range(1, 9):
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / f"{name}{k}.jpg")
            self.coco["images"].append(
                {"id": k, "file_name": f"{name}{k}.jpg", "width": WIDTH, "height": HEIGHT}
            )
            for box in BOXES:
                identity = len(self.coco["annotations"]) + 1
                self.coco["annotations"].append(
                    {
                        "id": identity, "image_id": k, "category_id": 3, "bbox": list(box),
                        "area": box[2] * box[3], "iscrowd": 0,
                    }
                )  # fmt: skip
        self.coco["categories"] = [{"id": 3, "name": "kite"}]

    def write(self) -> None:
        self.json.write_text(json.dumps(self.coco))

    def path(self, number: int) -> Path:
        return self.images / self.coco["images"][number - 1]["file_name"]

    @property
    def arguments(self) -> list[str]:
        return [str(self.json), str(self.images)]


class Splits:
    """A training and a validation set."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train, self.val = Split(root, "train", 0), Split(root, "val", 1)
        for split in (self.train, self.val):
            split.write()

    def report(self, *arguments: str) -> dict[str, Any]:
        """The tool's JSON. Its exit must be as the JSON says, and nothing else be left behind."""
        out = self.root / "out" / "report.json"
        command = [*self.train.arguments, "--val", *self.val.arguments, "--json", str(out)]
        failed = None
        try:
            TOOL["main"]([*command, *arguments])
        except UserError as error:
            failed = str(error)
        report = json.loads(out.read_text())
        assert bool(report["errors"]) is (failed is not None)
        if failed:
            assert failed.startswith(report["errors"][0]["line"])
        assert [path.name for path in out.parent.iterdir()] == ["report.json"]
        return report


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    return Splits(tmp_path)


def test_good_dataset(splits: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    report = splits.report()
    assert (report["errors"], report["warnings"]) == ([], [])
    train, val = report["datasets"]
    assert (train["images"], train["images_with_boxes"], train["boxes"]) == (8, 8, 24)
    assert val["classes"] == [{"name": "kite", "boxes": 24, "images": 8}]
    assert train["boxes_per_image"] == {"median": 3, "max": 3}
    assert train["image_sizes"]["most_common"] == [WIDTH, HEIGHT]
    # Sides √(w·h): √600 = 24.5, √1200 = 34.6, √768 = 27.7, eight of each
    assert train["small_medium_large"] == [16, 8, 0]
    assert train["box_sizes"]["p50"] == pytest.approx(math.sqrt(768))
    assert train["ratios"]["p95"] == pytest.approx(3)  # 48 / 16
    printed = capsys.readouterr().out
    assert "no errors" in printed
    assert "24 (100.0%) in 8 images" in printed


# Each takes the training set apart in its own way. Of the JSON:


def annotation(**values: Any) -> Callable[[Splits], None]:
    def spoil(splits: Splits) -> None:
        splits.train.coco["annotations"][4].update(values)
        splits.train.write()

    return spoil


def image(**values: Any) -> Callable[[Splits], None]:
    def spoil(splits: Splits) -> None:
        splits.train.coco["images"][1].update(values)
        splits.train.write()

    return spoil


def without(group: str, key: str, split: str = "train") -> Callable[[Splits], None]:
    def spoil(splits: Splits) -> None:
        part = getattr(splits, split)
        del part.coco[group][1][key]
        part.write()

    return spoil


def all_boxes(convert: Callable[..., list[float]]) -> Callable[[Splits], None]:
    def spoil(splits: Splits) -> None:
        for each in splits.train.coco["annotations"]:
            each["bbox"] = convert(*each["bbox"])
        splits.train.write()

    return spoil


def coco(**values: Any) -> Callable[[Splits], None]:
    def spoil(splits: Splits) -> None:
        splits.train.coco.update(values)
        splits.train.write()

    return spoil


def text(content: str) -> Callable[[Splits], None]:
    return lambda splits: splits.train.json.write_text(content)


def no_boxes_in(*images: int) -> Callable[[Splits], None]:
    def spoil(splits: Splits) -> None:
        kept = [a for a in splits.train.coco["annotations"] if a["image_id"] not in images]
        splits.train.coco["annotations"] = kept
        splits.train.write()

    return spoil


def set_all(key: str, value: Any) -> Callable[[Splits], None]:
    def spoil(splits: Splits) -> None:
        for each in splits.train.coco["annotations"]:
            each[key] = value
        splits.train.write()

    return spoil


# … and of the images:


def saved(number: int = 2, **options: Any) -> Callable[[Splits], None]:
    """Image 2 as the function ``make`` makes it, saved with the other options."""

    def spoil(splits: Splits) -> None:
        path = splits.train.path(number)
        make = options.pop("make")
        with Image.open(path) as picture:
            made = make(picture)
        made.save(path, **options)

    return spoil


def turned(orientation: int, **size: int) -> Callable[[Splits], None]:
    def spoil(splits: Splits) -> None:
        path = splits.train.path(2)
        with Image.open(path) as picture:
            exif = picture.getexif()
            exif[0x112] = orientation
            picture.save(path, exif=exif)
        image(**size)(splits)

    return spoil


def renamed(new: str) -> Callable[[Splits], None]:
    """Image 2's file is not where the JSON says; its name there becomes ``new``."""
    return image(file_name=new)


def saved_as(suffix: str, make: Callable[[Image.Image], Image.Image]) -> Callable[[Splits], None]:
    """Image 2 in another file format."""

    def spoil(splits: Splits) -> None:
        path = splits.train.path(2)
        with Image.open(path) as picture:
            made = make(picture)
        path.unlink()
        made.save(path.with_suffix(suffix))
        image(file_name=path.with_suffix(suffix).name)(splits)

    return spoil


def copied(source: str, target: str) -> Callable[[Splits], None]:
    """Image 2 of the split ``target`` becomes a copy of image 1 of ``source``."""

    def spoil(splits: Splits) -> None:
        shutil.copy(getattr(splits, source).path(1), getattr(splits, target).path(2))

    return spoil


def namesakes(splits: Splits) -> None:
    splits.val.path(2).rename(splits.val.images / "train1.jpg")
    splits.val.coco["images"][1]["file_name"] = "train1.jpg"
    splits.val.write()


def other_classes(*names: str) -> Callable[[Splits], None]:
    """Both sets have two classes; those of the validation set are ``names``."""

    def spoil(splits: Splits) -> None:
        for split, two in ((splits.train, ("kite", "ball")), (splits.val, names)):
            split.coco["categories"] = [{"id": 3 + k, "name": n} for k, n in enumerate(two)]
            for each in split.coco["annotations"][::2]:
                each["category_id"] = 4
            split.write()

    return spoil


def unused_class(splits: Splits) -> None:
    for split in (splits.train, splits.val):
        split.coco["categories"].append({"id": 4, "name": "ball"})
        split.write()


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
    "xml": (text("<annotation></annotation>"), "unreadable", "it is XML: convert it with tools/"),
    "yolo labels": (text("0 0.5 0.5 0.1 0.2\n"), "unreadable", "looks like a YOLO label file"),
    "labelme": (text('{"shapes": [], "imagePath": "a"}'), "unreadable", "it is LabelMe's format"),
    "results": (text('[{"image_id": 1, "score": 0.5}]'), "unreadable", "detections, which have"),
    "list": (text("[1, 2]"), "unreadable", "the top level is no object but a list"),
    "no images": (coco(images=[]), "unreadable", "no list 'images', or an empty one"),
    "no categories": (coco(categories=None), "unreadable", "no list 'categories'"),
    "no object": (coco(images=["a.jpg"]), "unreadable", "an entry of 'images' is no object"),
    "annotations": (coco(annotations={}), "unreadable", "'annotations' is no list"),
    "image key": (without("images", "height"), "image-keys", "image train2.jpg has no 'height'"),
    "image size": (image(width="96"), "image-size-value", "size '96' × 72 is no whole number"),
    "image id": (image(id=1), "duplicate-image-id", "two images share one id, 1"),
    "no annotations": (coco(annotations=[]), "no-annotations", "no annotations to train on"),
    "only crowds": (set_all("iscrowd", 1), "no-annotations", "every box has iscrowd 1"),
    "annotation key": (
        without("annotations", "bbox"), "annotation-keys", "annotation 2: no 'bbox'"
    ),
    "annotation id": (annotation(id=1), "duplicate-annotation-id", "annotations share one id, 1"),
    "text id": (annotation(id="a"), "annotation-keys", "evaluation needs whole numbers"),
    "image_id": (annotation(image_id=99), "unknown-image", "image_id 99 is not in 'images'"),
    "image_id text": (
        annotation(image_id="2"), "unknown-image", "'2' is not in 'images', which has 2: write both"
    ),
    "image_id list": (annotation(image_id=[2]), "unknown-image", "image_id [2] is not in"),
    "category_id": (annotation(category_id=9), "unknown-category", "category_id 9 is not in"),
    "category key": (coco(categories=[{"id": 3}]), "category-keys", "give each a number 'id'"),
    "category id": (
        coco(categories=[{"id": 3, "name": "kite"}, {"id": 3, "name": "ball"}]),
        "duplicate-category-id", "categories 'kite' and 'ball' share one id, 3",
    ),
    "category name": (
        coco(categories=[{"id": 3, "name": "kite"}, {"id": 4, "name": "kite"}]),
        "duplicate-category-name", "two categories have the name 'kite'",
    ),
    "three numbers": (annotation(bbox=[1, 2, 3]), "bbox-value", "annotation 5: bbox [1, 2, 3] is"),
    "text box": (annotation(bbox=["1", 2, 3, 4]), "bbox-value", "['1', 2, 3, 4] is no [x, y,"),
    "nan box": (annotation(bbox=[1, 2, math.nan, 4]), "bbox-value", "of four finite numbers"),
    "area": (annotation(area="big"), "area-value", "area 'big' is no number"),
    "iscrowd": (annotation(iscrowd="no"), "iscrowd-value", "iscrowd 'no' is neither 0 nor 1"),
    "ignore": (annotation(ignore=1), "ignore", "Detectron2 refuses it; set iscrowd to 1"),
    "negative": (annotation(bbox=[30, 30, -9, 5]), "bbox-negative", "annotation 5: bbox [30, 30,"),
    "outside": (annotation(bbox=[97, 3, 5, 5]), "bbox-outside", "outside its image of 96 × 72"),
    "corners": (
        all_boxes(lambda x, y, w, h: [x, y, x + w, y + h]),
        "bbox-corners", "8 of 24 boxes reach out of their image as [x, y, width, height], such as"
        " [50, 40, 90, 70], and all fit as [x1, y1, x2, y2]",
    ),
    "centres": (
        all_boxes(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]),
        "bbox-centre", "all fit as [centre x, centre y, width, height]",
    ),
    "fractions": (
        all_boxes(lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]),
        "bbox-normalised", "all boxes are fractions of their image",
    ),
    "missing image": (
        lambda s: s.train.path(2).unlink(), "missing-image", "train/train2.jpg: no such image"
    ),
    "folder in name": (renamed("data/train2.jpg"), "missing-image", "drop what is before it"),
    "backslashes": (renamed("data\\x.jpg"), "missing-image", "file_name has backslashes"),
    "upper case": (renamed("Train2.JPG"), "missing-image", "correct upper and lower case"),
    "other ending": (renamed("train2.png"), "missing-image", "the folder has train2.jpg: correct"),
    "truncated": (truncated, "undecodable-image", "does not decode: image file is truncated"),
    "empty file": (
        lambda s: s.train.path(2).write_bytes(b""), "undecodable-image", "jpg: an empty file"
    ),
    "no picture": (
        lambda s: s.train.path(2).write_text("%PDF-1.7"), "undecodable-image", "no image of a kind"
    ),
    "other size": (
        saved(make=lambda picture: picture.resize((48, 36))),
        "image-size", "train2.jpg: 48 × 36 pixels, but width and height say 96 × 72",
    ),
    "turned": (turned(6), "image-size", "its EXIF tag turns it by 90°; save it upright"),
    "classes differ": (
        other_classes("kite", "bird"), "categories-differ", "ball only in"
    ),
    "class order": (
        other_classes("ball", "kite"), "categories-differ", "class 1 by id is 'ball', not 'kite'"
    ),
    "in both": (copied("train", "val"), "shared-image", "val2.jpg is the same image as train1.jpg"),
    "evaluation keys": (
        without("annotations", "iscrowd", "val"),
        "annotation-keys", "annotation 2: no 'iscrowd': evaluation needs it: write 0",
    ),
}  # fmt: skip

WARNINGS = {
    "no box": (no_boxes_in(2, 3), "empty-image", "train2.jpg has no box: training leaves it out"),
    "no area": (annotation(bbox=[3, 3, 0, 9]), "bbox-no-area", "bbox [3, 3, 0, 9] has no area"),
    "over the edge": (annotation(bbox=[90, 3, 9, 9]), "bbox-over-edge", "reaches over the edge"),
    "twice": (annotation(bbox=BOXES[0]), "duplicate-box", "annotation 5: its image has the same"),
    "listed twice": (
        image(file_name="train1.jpg"), "duplicate-file-name", "train1.jpg is listed twice"
    ),
    "same file": (copied("train", "train"), "duplicate-image", "the same file as train1.jpg"),
    "class without boxes": (unused_class, "empty-class", "category 'ball' has no box"),
    "few boxes": (no_boxes_in(1, 2), "few-boxes", "category 'kite' has 18 boxes to learn from"),
    "turned size": (
        turned(6, width=HEIGHT, height=WIDTH), "image-turned", "its EXIF tag turns it"
    ),
    "upside down": (turned(3), "image-turned", "see that the boxes were drawn on the turned"),
    "16 bits": (
        saved_as(".png", sixteen_bits), "image-16-bit", "values above 255 become 255"
    ),
    "CMYK": (
        saved(make=lambda picture: picture.convert("CMYK")), "image-mode-CMYK", "as for print"
    ),
    "palette": (saved_as(".png", lambda p: p.convert("P")), "image-mode-P", "a palette"),
    "transparent": (saved_as(".png", lambda p: p.convert("RGBA")), "image-mode-RGBA", "dropped"),
    "same name": (namesakes, "shared-name", "train1.jpg has the name of train1.jpg of"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("severity", "spoil", "kind", "part"),
    [("errors", *case) for case in ERRORS.values()]
    + [("warnings", *case) for case in WARNINGS.values()],
    ids=[*ERRORS, *WARNINGS],
)
def test_bad_dataset(
    splits: Splits, severity: str, spoil: Callable[[Splits], object], kind: str, part: str
) -> None:
    spoil(splits)
    report = splits.report()
    found = {finding["kind"]: finding["line"] for finding in report[severity]}
    assert kind in found
    line = found[kind]
    assert part in line
    assert "\n" not in line
    assert line.startswith(str(splits.root))
    if severity == "warnings":
        assert not report["errors"]
    elif kind != "duplicate-image-id":  # its boxes have no image any more
        assert len(report["errors"]) == 1


def test_errors_of_a_kind_are_counted(splits: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (2, 3, 5):
        splits.train.path(number).unlink()
    (finding,) = splits.report()["errors"]
    assert (finding["count"], finding["cases"][1:]) == (3, ["train3.jpg", "train5.jpg"])
    assert finding["line"].endswith("(and 2 more)")
    assert "also train3.jpg, train5.jpg" in capsys.readouterr().out


def test_without_validation_set_the_file_is_for_both(
    splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    del splits.train.coco["annotations"][1]["area"]
    splits.train.write()
    assert splits.report()["errors"] == []  # training needs no areas
    with pytest.raises(UserError, match="annotation 2: no 'area'"):
        TOOL["main"](splits.train.arguments)
    assert "1 error:" in capsys.readouterr().out


def test_exit_code(splits: Splits) -> None:
    splits.train.path(2).unlink()
    command = [sys.executable, "tools/check_dataset.py", *splits.train.arguments]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert "train2.jpg: no such image" in line
    assert "Traceback" not in failed.stderr
    assert "1 error:" in failed.stdout


def test_images_that_are_not_listed(splits: Splits) -> None:
    (splits.train.images / "notes.txt").touch()
    shutil.copy(splits.train.path(1), splits.train.images / "more.jpg")
    assert [data["images_not_listed"] for data in splits.report()["datasets"]] == [1, 0]


def test_annotation_id_0(splits: Splits) -> None:
    """COCO's evaluation really counts the detection as false, which is why there is a warning."""
    for each in splits.val.coco["annotations"]:
        each["id"] -= 1
    splits.val.write()
    (warning,) = splits.report()["warnings"]
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


def test_anchors_against_detectron2() -> None:
    """The best overlap of each box is that of Detectron2's own anchors, all laid out."""
    sizes, ratios, strides = [[16.0], [32.0, 40.0], [64.0]], [0.5, 1.0, 2.0], [4, 8, 16]
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(60, 200, (50, 2)), rng.uniform(5, 90, (50, 2))], axis=1)
    for offset in (0.0, 0.5):
        generator = DefaultAnchorGenerator(
            sizes=sizes, aspect_ratios=[ratios], strides=strides, offset=offset
        )
        laid = generator([torch.zeros(1, 1, 400 // s, 400 // s) for s in strides])
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        overlaps = pairwise_iou(Boxes(torch.tensor(corners).float()), Boxes.cat(laid))
        expected = overlaps.max(dim=1).values.numpy()
        described = anchors.Anchors(sizes, ratios, strides, offset)
        assert anchors.best_overlaps(boxes, described) == pytest.approx(expected, abs=1e-5)


def test_suggested_anchors(splits: Splits) -> None:
    """Boxes of one small size, twice as high as wide, in images that are not resized."""
    rng = np.random.default_rng(0)
    for each in splits.train.coco["annotations"]:
        each["bbox"] = [*rng.uniform(0, 50, 2).tolist(), 6.0, 12.0]
    splits.train.write()
    override = ["INPUT.MIN_SIZE_TRAIN", "(0,)"]
    report = splits.report(*override)
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
    again = splits.report(*override, *shlex.split(suggested["override"]))
    assert again["anchors"]["config"]["meet"] == suggested["meet"]
    assert again["warnings"] == []


def test_retina_anchors() -> None:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 40]]
    described = anchors.config_anchors(cfg)
    assert described.strides == [8, 16, 32, 64, 128]
    assert described.sizes == [[32.0, 40.0]] * 5


def test_resized_boxes() -> None:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (100, 200, 300), 400
    sizes = np.array([[50.0, 100.0], [100.0, 50.0], [1000.0, 100.0]])
    # To a shorter side of 200; the third would be 2000 wide, so it becomes 400
    assert anchors.resize_factors(cfg, sizes).tolist() == [4, 4, 0.4]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_size(tmp_path: Path, orientation: int) -> None:
    """Width and height after turning, as Detectron2 reads the file."""
    path = tmp_path / "a.jpg"
    picture = Image.new("RGB", (6, 4))
    exif = picture.getexif()
    exif[0x112] = orientation
    picture.save(path, exif=exif)
    file = read_image_file(str(path))
    assert not isinstance(file, str)
    assert file.upright_size == read_image(str(path)).shape[1::-1]
