"""tools/import_dataset.py against hand computations, and what it says of bad data."""

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.datasets.coco import load_coco_json
from PIL import Image

from configs import ROOT
from dgnet_det.errors import UserError
from studies.tree_crowns import find_photographs, read_voc_boxes

TOOL = runpy.run_path(str(ROOT / "tools/import_dataset.py"))
SIZE = (80, 60)


def convert(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The COCO JSON of each split, by the tool, which must write nothing else."""
    output = folder.parent / "coco"
    TOOL["main"]([str(folder), str(output), *arguments])
    return {path.stem: json.loads(path.read_text()) for path in sorted(output.iterdir())}


def boxes_by_file(coco: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """For each image the class names, boxes and crowd flags, in order."""
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found: dict[str, list[tuple[Any, ...]]] = {i["file_name"]: [] for i in coco["images"]}
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    for a in coco["annotations"]:
        assert a["area"] == a["bbox"][2] * a["bbox"][3]
        found[files[a["image_id"]]].append((names[a["category_id"]], a["bbox"], a["iscrowd"]))
    return found


def draw(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (len(path.name), 50, 90)).save(path)


def voc(*objects: tuple[Any, ...], filename: str = "a.jpg", size: tuple[int, int] = SIZE) -> str:
    """XML of objects (name, xmin, ymin, xmax, ymax, difficult)."""
    text = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1, difficult in objects
    )
    return (
        f"<annotation><filename>{filename}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>{text}</annotation>"
    )


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Pascal VOC's own layout: train a, val b (without objects), test c."""
    folder = tmp_path / "VOC2007"
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets/Main").mkdir(parents=True)
    texts = {
        # The whole image, then pixels 11 to 20 of columns 1 to 5
        "a": voc(("dog", 1, 1, 80, 60, 0), ("cat", 1, 11, 5, 20, 1)),
        "b": voc(),
        "c": voc(("dog", 30, 20, 30, 20, 0)),  # one pixel
    }
    for name, text in texts.items():
        draw(folder / "JPEGImages" / f"{name}.jpg")
        (folder / f"Annotations/{name}.xml").write_text(text)
    lists = {"train": "a\n", "val": "b\n", "test": "c\n", "trainval": "a\nb\n"}
    lists["dog_train"] = "a  1\n"
    for name, text in lists.items():
        (folder / f"ImageSets/Main/{name}.txt").write_text(text)
    return folder


def yolo_yaml(folder: Path, text: str = "names: [cat, dog]\n") -> None:
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\n" + text)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """The usual YOLO layout with a data.yaml: train a and b (without labels), val c."""
    folder = tmp_path / "yolo"
    for name in ("train/a.jpg", "train/b.png", "val/c.jpg"):
        draw(folder / "images" / name)
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/val").mkdir()
    # Centre (40, 30), 20 × 30 pixels; then the whole image, with a confidence
    (folder / "labels/train/a.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.5 0.5 1 1 0.9\n")
    # A triangle between x 0.125 and 0.75, y 0.25 and 0.5
    (folder / "labels/val/c.txt").write_text("0 0.125 0.25 0.75 0.25 0.5 0.5\n")
    yolo_yaml(folder)
    return folder


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
    assert "tools/check_dataset.py" in capsys.readouterr().out


def test_voc_edges_from_0(devkit: Path) -> None:
    """A coordinate of 0 in one file tells that none of them counts from 1."""
    (devkit / "Annotations/c.xml").write_text(voc(("dog", 0, 2.5, 80, 60, 0)))
    assert boxes_by_file(convert(devkit)["train"])["a.jpg"][1][1] == [1, 11, 4, 9]
    assert boxes_by_file(convert(devkit)["test"])["c.jpg"][0][1] == [0, 2.5, 80, 57.5]
    one = boxes_by_file(convert(devkit, "--origin", "1")["train"])
    assert one["a.jpg"][1][1] == [0, 10, 5, 10]


def test_voc_classes_in_order(devkit: Path) -> None:
    splits = convert(devkit, "--classes", "dog", "cat", "bird")
    assert [c["name"] for c in splits["train"]["categories"]] == ["dog", "cat", "bird"]
    assert boxes_by_file(splits["train"])["a.jpg"][1][0] == "cat"


def test_voc_images_elsewhere(devkit: Path) -> None:
    elsewhere = devkit.parent / "photos"
    (devkit / "JPEGImages").rename(elsewhere)
    summary = devkit.parent / "summary.json"
    convert(devkit, "--images", str(elsewhere), "--json", str(summary))
    assert json.loads(summary.read_text())["splits"]["val"]["image_folder"] == str(elsewhere)


def test_voc_folder_for_each_split(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    for split in ("train", "valid"):
        draw(folder / split / "a.jpg")
        (folder / split / "a.xml").write_text(voc((split, 2, 3, 4, 5, 0)))
    splits = convert(folder)
    assert boxes_by_file(splits["train"]) == {"a.jpg": [("train", [1, 2, 3, 3], 0)]}
    assert boxes_by_file(splits["val"]) == {"a.jpg": [("valid", [1, 2, 3, 3], 0)]}


def test_voc_image_of_an_xml(tmp_path: Path) -> None:
    """The image has the XML's name; of two such, or without one, <filename> tells."""
    folder = tmp_path / "flat"
    for name in ("a.png", "b.png", "b.jpg", "photo.png", "unused.png"):
        draw(folder / name)
    (folder / "a.xml").write_text(voc(("x", 2, 2, 9, 9, 0), filename="photo.png"))
    (folder / "b.xml").write_text(voc(filename="C:\\data\\b.jpg"))
    (folder / "c.xml").write_text(voc(filename="photo.png"))
    summary = tmp_path / "summary.json"
    splits = convert(folder, "--json", str(summary))
    assert [i["file_name"] for i in splits["train"]["images"]] == ["a.png", "b.jpg", "photo.png"]
    (warning,) = json.loads(summary.read_text())["warnings"]
    assert warning.startswith(f"{folder / 'unused.png'}: no XML file: left out")


def test_voc_turned_image(tmp_path: Path) -> None:
    """Sizes are those of the image as Detectron2 reads it, which the XML may contradict."""
    folder = tmp_path / "flat"
    folder.mkdir()
    picture = Image.new("RGB", SIZE)
    exif = picture.getexif()
    exif[0x112] = 6
    picture.save(folder / "a.jpg", exif=exif)
    (folder / "a.xml").write_text(voc(("x", 2, 2, 9, 9, 0)))
    summary = tmp_path / "summary.json"
    (image,) = convert(folder, "--json", str(summary))["train"]["images"]
    assert (image["width"], image["height"]) == (60, 80)
    (warning,) = json.loads(summary.read_text())["warnings"]
    assert "the image has 60 × 80 pixels, its XML says 80 × 60" in warning


def test_tree_crowns(tmp_path: Path) -> None:
    """The photographs of the wheel, which are Pascal VOC beside their images."""
    photographs = find_photographs()
    folder = tmp_path / "photos"
    folder.mkdir()
    for photograph in photographs:
        for path in photograph:
            shutil.copy(path, folder)
    coco = convert(folder)["train"]
    assert coco["categories"] == [{"id": 1, "name": "Tree"}]
    assert [image["width"] for image in coco["images"]] == [2299, 1249]
    found = list(boxes_by_file(coco).values())
    assert [len(boxes) for boxes in found] == [574, 279]
    for boxes, photograph in zip(found, photographs, strict=True):
        corners = read_voc_boxes(photograph.annotation)
        expected = np.concatenate([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2] + 1], 1)
        assert np.array_equal([box for _, box, _ in boxes], expected)
    # The first object of the second file: 1012, 161, 1041, 196
    assert found[1][0] == ("Tree", [1011, 160, 30, 36], 0)
    assert len(load_coco_json(str(tmp_path / "coco/train.json"), str(folder))) == 2


def test_yolo(yolo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = convert(yolo)
    assert boxes_by_file(splits["train"]) == {
        "a.jpg": [("dog", [30, 15, 20, 30], 0), ("cat", [0, 0, 80, 60], 0)],
        "b.png": [],
    }
    assert boxes_by_file(splits["val"]) == {"c.jpg": [("cat", [10, 15, 50, 15], 0)]}
    assert splits["val"]["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    printed = capsys.readouterr().out
    assert "b.png: no label file: taken for an image without objects" in printed
    assert f"images in {yolo / 'images/train'}" in printed


@pytest.mark.parametrize(
    "names",
    [
        "names:\n  1: dog\n  0: cat\n",
        "names:\n  '0': cat\n  '1': dog\n",
        "names: [cat, dog]\nnc: 2\npath: /not/here\n",
        "names: [cat, dog]\npath: .\ntest: images/none\n",
    ],
)
def test_yolo_data_yaml(yolo: Path, names: str) -> None:
    expected = convert(yolo)
    yolo_yaml(yolo, names)
    assert convert(yolo) == expected
    by_file = convert(yolo / "data.yaml")
    for split, coco in by_file.items():
        assert coco["annotations"] == expected[split]["annotations"]
        assert coco["categories"] == expected[split]["categories"]


def test_yolo_export_with_folder_for_each_split(yolo: Path) -> None:
    """``split/images`` and ``split/labels``, with paths in data.yaml that start one folder off."""
    expected = convert(yolo)
    for split, name in (("train", "train"), ("valid", "val")):
        for part in ("images", "labels"):
            (yolo / split).mkdir(exist_ok=True)
            (yolo / part / name).rename(yolo / split / part)
    for part in ("images", "labels"):
        (yolo / part).rmdir()
    text = "train: ../train/images\nval: ../valid/images\nnames: [cat, dog]\n"
    (yolo / "data.yaml").write_text(text)
    assert convert(yolo) == expected
    (yolo / "data.yaml").unlink()
    assert convert(yolo, "--format", "yolo", "--classes", "cat", "dog") == expected


def test_yolo_list_of_images(yolo: Path) -> None:
    (yolo / "train.txt").write_text("./images/train/a.jpg\n")
    (yolo / "data.yaml").write_text("train: [train.txt, images/val]\nnames: [cat, dog]\n")
    found = boxes_by_file(convert(yolo)["train"])
    assert set(found) == {"train/a.jpg", "val/c.jpg"}
    assert found["train/a.jpg"][0] == ("dog", [30, 15, 20, 30], 0)


def test_yolo_key_points(yolo: Path) -> None:
    """Of a label with key points, the box."""
    (yolo / "labels/train/a.txt").write_text("1 0.5 0.5 0.25 0.5 0.1 0.1 0.9 0.9\n")
    yolo_yaml(yolo, "names: [cat, dog]\nkpt_shape: [2, 2]\n")
    assert boxes_by_file(convert(yolo)["train"])["a.jpg"] == [("dog", [30, 15, 20, 30], 0)]


def test_yolo_with_classes_txt(yolo: Path) -> None:
    expected = convert(yolo)
    (yolo / "data.yaml").unlink()
    (yolo / "labels/classes.txt").write_text("cat\ndog\n")
    assert convert(yolo) == expected
    (yolo / "labels/classes.txt").rename(yolo / "classes.txt")
    assert convert(yolo) == expected


def test_yolo_flat(yolo: Path) -> None:
    flat = yolo.parent / "images" / "flat"  # a folder "images" above changes nothing
    flat.mkdir(parents=True)
    for path in (yolo / "images/train/a.jpg", yolo / "labels/train/a.txt"):
        shutil.copy(path, flat)
    (flat / "classes.txt").write_text("cat\ndog\n")
    TOOL["main"]([str(flat), str(yolo.parent / "coco")])
    coco = json.loads((yolo.parent / "coco/train.json").read_text())
    assert boxes_by_file(coco)["a.jpg"][0] == ("dog", [30, 15, 20, 30], 0)


def test_val_share(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    for k in range(10):
        draw(folder / f"{k}.jpg")
        (folder / f"{k}.xml").write_text(voc(("x", 2, 2, 9, 9, 0)))
    splits = convert(folder, "--val-share", "0.3")
    names = {split: {i["file_name"] for i in c["images"]} for split, c in splits.items()}
    assert {split: len(files) for split, files in names.items()} == {"train": 7, "val": 3}
    assert len(names["train"] | names["val"]) == 10
    assert convert(folder, "--val-share", "0.3") == splits
    assert convert(folder, "--val-share", "0.3", "--seed", "1") != splits


def write(path: str, text: str | bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = text.encode() if isinstance(text, str) else text
        (folder / path).write_bytes(content)

    return spoil


BAD_VOC = {
    # id: (spoil, arguments, file in the message, message)
    "no xml": (
        write("Annotations/a.xml", "<annotation>"), "", "Annotations/a.xml", "cannot be read as"
    ),
    "other xml": (write("Annotations/a.xml", "<svg/>"), "", "Annotations/a.xml", "it holds <svg>"),
    "reversed": (
        write("Annotations/a.xml", voc(("dog", 9, 2, 5, 8, 0))), "",
        "Annotations/a.xml", "object 1: not xmin ≤ xmax",
    ),
    "no box": (
        write("Annotations/a.xml", "<annotation><object><name>x</name></object></annotation>"), "",
        "Annotations/a.xml", "object 1: no name, or no bndbox",
    ),
    "text": (
        write("Annotations/a.xml", voc(("dog", "left", 2, 5, 8, 0))), "",
        "Annotations/a.xml", "object 1: no name, or no bndbox",
    ),
    "nan": (
        write("Annotations/a.xml", voc(("dog", "nan", 2, 5, 8, 0))), "",
        "Annotations/a.xml", "object 1: not xmin ≤ xmax",
    ),
    "no name": (
        write("Annotations/a.xml", voc((" ", 1, 2, 5, 8, 0))), "",
        "Annotations/a.xml", "object 1: its name is empty",
    ),
    "no image": (
        lambda f: (f / "JPEGImages/a.jpg").unlink(), "", "Annotations/a.xml", "no image a or a.jpg"
    ),
    "broken image": (
        write("JPEGImages/a.jpg", b"x"), "", "JPEGImages/a.jpg", "the image cannot be read"
    ),
    "split": (
        write("ImageSets/Main/val.txt", "b\nz\n"), "", "ImageSets/Main/val.txt",
        "lists z, which has no XML file",
    ),
    "class": (lambda f: None, "--classes cat", "", "class 'dog' is not among --classes"),
    "has splits": (lambda f: None, "--val-share 0.5", None, "the data have splits, test, train,"),
    "yolo too": (write("data.yaml", "names: [a]"), "", "", "looks like both Pascal VOC and YOLO"),
    "twice": (lambda f: None, "--classes cat dog cat", "", "the class 'cat' is given twice"),
}  # fmt: skip
A = "labels/train/a.txt"
BAD_YOLO = {
    "four numbers": (write(A, "0 0.5 0.5 0.1"), "", A, "line 1, '0 0.5 0.5 0.1': no class number"),
    "text": (write(A, "cat 0.5 0.5 0.1 0.1"), "", A, "line 1, 'cat 0.5 0.5 0.1 0.1': no class"),
    "pixels": (write(A, "0 40 30 20 30"), "", A, "not fractions of the image"),
    "negative": (write(A, "0 0.5 0.5 -0.1 0.1"), "", A, "must be numbers of at least 0"),
    "nan": (write(A, "0 nan 0.5 0.1 0.1"), "", A, "must be numbers of at least 0"),
    "class": (write(A, "0 .5 .5 .1 .1\n2 .5 .5 .1 .1"), "", A, "line 2, '2 .5 .5 .1 .1': class 2:"),
    "half a class": (write(A, "0.5 .5 .5 .1 .1"), "", A, "class 0.5: there are 2 classes"),
    "no text": (write(A, b"\xff\xfe\x00"), "", A, "no text file"),
    "no image": (
        write("labels/train/z.txt", "0 .5 .5 .1 .1"), "", "labels/train/z.txt", "no image of this"
    ),
    "broken image": (write("images/val/c.jpg", b"x"), "", "images/val/c.jpg", "cannot be read"),
    "no labels": (
        lambda f: shutil.rmtree(f / "labels"), "", "", "no image has a label file: looked for"
    ),
    "broken yaml": (write("data.yaml", "names: ["), "", "data.yaml", "no valid YAML"),
    "no split": (write("data.yaml", "names: [a]"), "", "data.yaml", "neither train nor val"),
    "no folder": (
        write("data.yaml", "names: [a]\ntrain: gone"), "", "data.yaml", "train: no such folder"
    ),
    "gap in names": (
        write("data.yaml", "names: {0: cat, 2: dog}"), "", "data.yaml", "without gaps"
    ),
    "yes": (write("data.yaml", "names: [yes, no]"), "", "data.yaml", "put it in quotes"),
    "names": (write("data.yaml", "names: cat"), "", "data.yaml", "no list of class names"),
    "classes twice": (lambda f: None, "--classes cat", "data.yaml", "leave out --classes"),
    "no classes": (
        lambda f: (f / "data.yaml").unlink(), "", "", "neither a data.yaml with names nor"
    ),
    "voc's options": (lambda f: None, "--origin 1", None, "--images, --origin: these are of"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "spoil", "arguments", "file", "part"),
    [("devkit", *case) for case in BAD_VOC.values()]
    + [("yolo", *case) for case in BAD_YOLO.values()],
    ids=[f"voc-{name}" for name in BAD_VOC] + [f"yolo-{name}" for name in BAD_YOLO],
)
def test_bad_dataset(
    request: pytest.FixtureRequest,
    layout: str,
    spoil: Callable[[Path], object],
    arguments: str,
    file: str | None,
    part: str,
) -> None:
    folder = request.getfixturevalue(layout)
    spoil(folder)
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
    (yolo / "labels/train/a.txt").write_text("0 1 1\n7 0.5 0.5 0.1 0.1\n")
    (yolo / "labels/val/c.txt").write_text("0 40 30 20 30\n")
    with pytest.raises(UserError, match=r"a\.txt: line 1, .* \(and 2 more\)$"):
        convert(yolo)


def test_failure_leaves_what_was_there(
    yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(yolo)
    before = {path.name: path.read_text() for path in (tmp_path / "coco").iterdir()}
    (yolo / "labels/train/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    calls = []

    def fails_at_second(*args: Any) -> dict[str, Any]:
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no space left on device")
        return {}

    monkeypatch.setattr("dgnet_det.data.importing.coco_of", fails_at_second)
    with pytest.raises(OSError, match="no space"):
        convert(yolo)
    assert {path.name: path.read_text() for path in (tmp_path / "coco").iterdir()} == before


def test_neither(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: no such folder"):
        convert(tmp_path / "gone")
    with pytest.raises(UserError, match="looks like neither Pascal VOC nor YOLO: say which"):
        convert(tmp_path)
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(UserError, match=r"train\.json: no folder: name the folder"):
        convert(tmp_path / "train.json")


def test_without_the_parser(devkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "globox", None)
    with pytest.raises(UserError, match="not installed: pip install globox"):
        convert(devkit)


def test_exit_code(devkit: Path) -> None:
    (devkit / "Annotations/a.xml").write_text("<")
    command = [sys.executable, "tools/import_dataset.py", str(devkit), str(devkit.parent / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"error: {devkit / 'Annotations/a.xml'}: cannot be read" in result.stderr
