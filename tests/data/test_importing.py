"""``dgnet import`` against hand computations, and what it says of bad data."""

import io
import json
from pathlib import Path

import pytest
from helpers.imported_sets import SIZE, boxes_by_file, convert, file_names, fill, turned_by, voc
from PIL import Image

from dgnet_cli import import_dataset
from dgnet_det.data.formats import READERS
from dgnet_det.errors import UserError


def wide() -> bytes:
    """An image of 16 bits."""
    file = io.BytesIO()
    Image.new("I;16", SIZE).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Pascal VOC's own layout: train a, val b (without objects), test c."""
    files = {f"JPEGImages/{name}.jpg": None for name in "abc"}
    files |= {
        # The whole image, then pixels 11 to 20 of columns 1 to 5
        "Annotations/a.xml": voc(("dog", 1, 1, 80, 60, 0), ("cat", 1, 11, 5, 20, 1)),
        "Annotations/b.xml": voc(),
        "Annotations/c.xml": voc(("dog", 30, 20, 30, 20, 0)),  # one pixel
    }
    lists = {"train": " a \n\n", "val": "b\n", "test": "c\n", "trainval": "a\nb\n"}
    files |= {f"ImageSets/Main/{name}.txt": text for name, text in lists.items()}
    files["ImageSets/Main/x_train.txt"] = "a 1\n"
    return fill(tmp_path / "VOC2007", files)


def test_voc(devkit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = convert(devkit)
    assert set(splits) == {"train", "val", "test"}
    assert boxes_by_file(splits["train"]) == {
        "a.jpg": [("dog", [0, 0, 80, 60], 0), ("cat", [0, 10, 5, 10], 1)]
    }
    assert boxes_by_file(splits["val"]) == {"b.jpg": []}
    assert boxes_by_file(splits["test"]) == {"c.jpg": [("dog", [29, 19, 1, 1], 0)]}
    for coco in splits.values():
        assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        assert (coco["images"][0]["width"], coco["images"][0]["height"]) == SIZE
    assert splits["train"]["annotations"][0]["id"] == 1
    assert "dgnet check" in capsys.readouterr().out


def test_voc_edges_from_0(devkit: Path) -> None:
    """A coordinate of 0 in one file tells that none of them counts from 1."""
    fill(devkit, {"Annotations/c.xml": voc(("dog", 0, 2.5, 80, 60, 0))})
    assert boxes_by_file(convert(devkit)["train"])["a.jpg"][1][1] == [1, 11, 4, 9]
    assert boxes_by_file(convert(devkit)["test"])["c.jpg"][0][1] == [0, 2.5, 80, 57.5]
    one = boxes_by_file(convert(devkit, "--origin", "1")["train"])
    assert one["a.jpg"][1][1] == [0, 10, 5, 10]


def test_empty_lists_tell_nothing(devkit: Path) -> None:
    for path in (devkit / "ImageSets/Main").iterdir():
        path.write_text("\n")
    assert file_names(convert(devkit)) == {"train": {"a.jpg", "b.jpg", "c.jpg"}}


def test_classes_in_order_and_images_elsewhere(devkit: Path) -> None:
    elsewhere, summary = devkit.parent / "photos", devkit.parent / "summary.json"
    (devkit / "JPEGImages").rename(elsewhere)
    options = ["--classes", "dog", "cat", "bird", "--images", str(elsewhere)]
    splits = convert(devkit, *options, "--json", str(summary))
    assert [c["name"] for c in splits["train"]["categories"]] == ["dog", "cat", "bird"]
    assert boxes_by_file(splits["train"])["a.jpg"][1][0] == "cat"
    assert json.loads(summary.read_text())["splits"]["val"]["image_folder"] == str(elsewhere)


@pytest.mark.parametrize("annotations", ["", "Annotations/"])
def test_folder_for_each_split(tmp_path: Path, annotations: str) -> None:
    images = "JPEGImages/" if annotations else ""
    files: dict[str, str | None] = {}
    for part in ("train", "valid"):
        files[f"{part}/{images}a.jpg"] = None
        files[f"{part}/{annotations}a.xml"] = voc((part, 2, 3, 4, 5, 0))
    splits = convert(fill(tmp_path / "export", files))
    assert boxes_by_file(splits["train"]) == {"a.jpg": [("train", [1, 2, 3, 3], 0)]}
    assert boxes_by_file(splits["val"]) == {"a.jpg": [("valid", [1, 2, 3, 3], 0)]}


def test_image_of_an_xml(tmp_path: Path) -> None:
    """The image has the XML's name; of two such, or without one, <filename> tells. Sizes are those
    of the image as Detectron2 reads it, which the XML may contradict."""
    names = ("a.png", "b.png", "b.jpg", "photo.png", "unused.png")
    folder = fill(tmp_path / "flat", dict.fromkeys(names))
    texts = {
        "a.xml": voc(("x", 2, 2, 9, 9, 0), filename="photo.png"),
        "b.xml": voc(filename="C:\\data\\b.jpg"),
        "c.xml": voc(filename="photo.png"),
    }
    fill(folder, texts)
    Image.new("RGB", SIZE).save(folder / "b.jpg", exif=turned_by(6))
    summary = tmp_path / "summary.json"
    images = convert(folder, "--json", str(summary))["train"]["images"]
    assert [i["file_name"] for i in images] == ["a.png", "b.jpg", "photo.png"]
    assert (images[1]["width"], images[1]["height"]) == (60, 80)
    unused, turned = json.loads(summary.read_text())["warnings"]
    assert turned.endswith("b.jpg: its labels are for a size of 80 × 60: turned by its EXIF tag")
    assert unused.startswith(f"{folder / 'b.png'}: no annotation: left out")
    assert unused.endswith("(and 1 more)")


def test_labelme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = [
        {"label": "cat", "points": [[50, 40], [10, 20.5]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[1, 2], [9, 4], [5, 8]]},
        {"label": "dog", "points": [[1, 2], [9, 4]], "shape_type": "line"},
    ]
    text = {"imagePath": "..\\photos\\a.png", "imageWidth": 80, "imageHeight": 60}
    files = {"a.png": None, "b.png": None, "b.json": '{"shapes": []}'}
    files["label_1.json"] = json.dumps({**text, "shapes": shapes})
    splits = convert(fill(tmp_path / "labelme", files))
    assert boxes_by_file(splits["train"]) == {
        "b.png": [],
        "a.png": [("cat", [10, 20.5, 40, 19.5], 0), ("dog", [1, 2, 8, 6], 0)],
    }
    assert "label_1.json: a.png: has line: only boxes and areas" in capsys.readouterr().out


CVAT = """<annotations><version>1.1</version>
<image id="0" name="one/a.jpg" subset="Train" width="80" height="60">
<box label="cat" xtl="10" ytl="20" xbr="50" ybr="40" rotation="90.0"/>
<polygon label="dog" points="1.5,2;9,4;5,8"/><tag label="night"/></image>
<image id="1" name="two/a.jpg" subset="Validation" width="80" height="60">
<box label="dog" xtl="0" ytl="0.5" xbr="80" ybr="60"/><points label="cat" points="1,1"/></image>
</annotations>"""


def test_cvat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"annotations.xml": CVAT, "images/one/a.jpg": None, "images/two/a.jpg": None}
    folder = fill(tmp_path / "cvat", files)
    splits = convert(folder)
    (boxes,) = boxes_by_file(splits["train"]).values()
    # 40 × 20 pixels around (30, 30), turned by 90°
    assert boxes[0][:1] == ("cat",)
    assert boxes[0][1] == pytest.approx([20, 10, 20, 40])
    assert boxes[1] == ("dog", [1.5, 2, 7.5, 6], 0)
    assert list(boxes_by_file(splits["val"]).values()) == [[("dog", [0, 0.5, 80, 59.5], 0)]]
    assert "a.jpg: has points: only boxes and areas" in capsys.readouterr().out
    by_file = convert(folder / "annotations.xml")
    assert by_file["val"]["annotations"] == splits["val"]["annotations"]
    fill(folder, {"annotations.xml": CVAT.replace("two/", "")})
    with pytest.raises(UserError, match=r"image a.jpg may be .*one/a.jpg or .*two/a.jpg"):
        convert(folder)


CSV = """filename,width,height,class,xmin,ymin,xmax,ymax,difficult
a.jpg,80,60,dog,10,20,50,40,0
a.jpg,80,60,cat,1.5,2,9,8,1
b.jpg,80,60,,,,,,
"""
OPEN_IMAGES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf
a,x,dog,1,0.125,0.625,0.25,0.5,0,0
a,x,cat,1,0,1,0,1,0,1
"""


def test_csv(tmp_path: Path) -> None:
    files = {"train_labels.csv": CSV, "valid.csv": CSV.replace("a.jpg", "images/c.png")}
    files |= {"classes.csv": "LabelName,DisplayName\n", "images/c.png": None}
    folder = fill(tmp_path / "csv", {**files, "images/a.jpg": None, "images/b.jpg": None})
    splits = convert(folder)
    boxes = [("dog", [10, 20, 40, 20], 0), ("cat", [1.5, 2, 7.5, 6], 1)]
    assert boxes_by_file(splits["train"]) == {"a.jpg": boxes, "b.jpg": []}
    assert boxes_by_file(splits["val"]) == {"c.png": boxes, "b.jpg": []}
    fill(folder, {"train_labels.csv": CSV.replace(",", ";")})
    assert convert(folder) == splits
    lines = "/data/images/a.jpg,10,20,50,40,dog\na.jpg,1.5,2,9,8,cat\nb.jpg,,,,,\n"
    (found,) = map(boxes_by_file, convert(fill(folder, {"x.csv": lines}) / "x.csv").values())
    assert found == {"a.jpg": [boxes[0], ("cat", boxes[1][1], 0)], "b.jpg": []}
    (found,) = map(boxes_by_file, convert(fill(folder, {"x.csv": OPEN_IMAGES}) / "x.csv").values())
    assert found == {"a.jpg": [("dog", [10, 15, 40, 15], 0), ("cat", [0, 0, 80, 60], 1)]}


def test_endings_and_names_as_they_are(tmp_path: Path) -> None:
    """An ending in capitals, a name with a blank, and a file that Pillow writes but does not
    read."""
    label = "filename,class,xmin,ymin,xmax,ymax\nphoto 1.jpg,dog,1,2,3,4\n"
    files = {"BOXES.CSV": label, "photo 1.jpg": None, "manual.pdf": "%PDF"}
    assert file_names(convert(fill(tmp_path / "set", files))) == {"train": {"photo 1.jpg"}}
    files = {"a b.xml": voc(("dog", 1, 2, 3, 4, 0), filename="a b.jpg"), "a b.jpg": None}
    folder = fill(tmp_path / "voc", files | {"ImageSets/Main/val.txt": "a b\n"})
    assert file_names(convert(folder)) == {"val": {"a b.jpg"}}


def test_val_share(tmp_path: Path) -> None:
    files = {f"{video}_{k}{end}": None if end == ".jpg" else voc(("x", 2, 2, 9, 9, 0))
             for video in "abcde" for k in range(2) for end in (".jpg", ".xml")}  # fmt: skip
    folder = fill(tmp_path / "flat", files)
    splits = convert(folder, "--val-share", "0.3")
    names = file_names(splits)
    assert {split: len(files) for split, files in names.items()} == {"train": 7, "val": 3}
    assert len(names["train"] | names["val"]) == 10
    assert convert(folder, "--val-share", "0.3") == splits
    assert convert(folder, "--val-share", "0.3", "--seed", "1") != splits
    # By video: two or four of ten images
    for seed in "0123":
        options = ["--val-share", "0.4", "--group-by", "^(.+)_", "--seed", seed]
        names = file_names(convert(folder, *options))
        assert len(names["val"]) == 4
        assert not {name[0] for name in names["train"]} & {name[0] for name in names["val"]}
    for pattern, message in (("^(b)", "does not match a_0.jpg"), ("(", "no regular expression")):
        with pytest.raises(UserError, match=message):
            convert(folder, "--val-share", "0.3", "--group-by", pattern)
    with pytest.raises(UserError, match="gives 0 of 10 images in 1 groups"):
        convert(folder, "--val-share", "0.3", "--group-by", "jpg")


XML, A = "Annotations/a.xml", "labels/train/a.txt"
BAD = [
    # layout, what is written over it, arguments, file in the message, message
    ("devkit", {XML: "<annotation>"}, "", XML, "not read as voc: no element found: line 1, column"),
    ("devkit", {XML: "<svg/>"}, "--format voc", XML, "it holds <svg>, not <annotation>"),
    ("devkit", {XML: voc(("dog", 9, 2, 5, 8, 0))}, "", XML, "object 1: no box of numbers, left"),
    ("devkit", {XML: voc(("dog", "nan", 2, 5, 8, 0))}, "", XML, "object 1: no box of numbers"),
    ("devkit", {XML: voc((" ", 1, 2, 5, 8, 0))}, "", XML, "object 1: has no class: name it"),
    ("devkit", {"q.xml": voc(filename="z.png")}, "", "q.xml", "no image q or z.png below"),
    ("devkit", {"JPEGImages/a.jpg": b"x"}, "", "JPEGImages/a.jpg", "does not decode"),
    ("devkit", {"JPEGImages/a.jpg": wide()}, "", "JPEGImages/a.jpg", "more than 8 bits"),
    ("devkit", {"ImageSets/Main/val.txt": "b\nz"}, "", "ImageSets/Main/val.txt", "lists z, which"),
    ("devkit", {}, "--classes cat", "", "class 'dog' is not among those given"),
    ("devkit", {}, "--classes cat dog cat", "", "a class is given twice: cat, dog, cat"),
    ("devkit", {}, "--val-share 0.5", None, "the data have splits already: train, val, test"),
    ("devkit", {"data.yaml": "names: [a]"}, "", "", "looks like voc and yolo: say which"),
    ("yolo", {A: "0 0.5 0.5 0.1"}, "", A, "line 1, '0 0.5 0.5 0.1': no box of numbers"),
    ("yolo", {A: "cat 0.5 0.5 0.1 0.1"}, "", A, "'cat 0.5 0.5 0.1 0.1': there are 2 classes"),
    ("yolo", {A: "0 40 30 20 30"}, "", A, "not fractions of the image"),
    ("yolo", {A: "0 .1 .1 .2 .2 .3 .3 .4"}, "", A, "line 1, '0 .1 .1 .2 .2 .3 .3 .4': no box"),
    ("yolo", {A: "0 .5 .5 .1 .1\n2 .5 .5 .1 .1"}, "", A, "line 2, '2 .5 .5 .1 .1': there are 2"),
    ("yolo", {A: b"\xff\xfe\x00"}, "", A, "no text in UTF-8"),
    ("yolo", {"data.yaml": "names: ["}, "", "data.yaml", "no valid YAML"),
    ("yolo", {"data.yaml": "names: {0: a, 2: b}"}, "", "", "classes are ['a', None]: give a"),
    ("yolo", {"data.yaml": "names: [yes, no]"}, "", "", "names of classes are [True, False]: give"),
    ("yolo", {A: "", "labels/val/c.txt": ""}, "", "", "no object in any file"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "files", "arguments", "file", "part"), BAD)
def test_bad_dataset(
    request: pytest.FixtureRequest,
    layout: str,
    files: dict[str, str | bytes | None],
    arguments: str,
    file: str | None,
    part: str,
) -> None:
    folder = fill(request.getfixturevalue(layout), files)
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert(folder, *arguments.split())
    message = str(caught.value)
    assert part in message
    assert "\n" not in message
    if file is not None:
        assert message.startswith(f"{folder / file}: ")
    assert sorted(folder.parent.rglob("*")) == before


def test_all_bad_files_are_counted(yolo: Path) -> None:
    fill(yolo, {A: "0 1 1\n7 0.5 0.5 0.1 0.1\n", "labels/val/c.txt": "0 40 30 20 30\n"})
    with pytest.raises(UserError, match=r"a\.txt: .* line 1, .* \(and 1 more\)$"):
        convert(yolo)


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: no such folder"):
        convert(tmp_path / "gone")
    with pytest.raises(UserError, match="looks like none of voc, labelme, cvat, csv, yolo, coco"):
        convert(tmp_path)
    assert tuple(READERS) == import_dataset.FORMATS
