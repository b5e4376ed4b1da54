"""``dgnet import`` on YOLO datasets, against hand computations."""

from pathlib import Path
from typing import Any

import pytest
from helpers.imported_sets import YOLO_YAML, boxes_by_file, convert, file_names, fill

from dgnet_det.errors import UserError


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
    "text",
    [
        "names:\n  1: dog\n  0: cat\n",
        "names:\n  '0': cat\n  '1': dog\n",
        "names: [cat, dog]\nnc: 2\npath: /not/here\ntest: images/none\n",
        None,
    ],
)
def test_yolo_classes(yolo: Path, text: str | None) -> None:
    expected = [coco["annotations"] for coco in convert(yolo).values()]
    if text is None:
        (yolo / "data.yaml").unlink()
        fill(yolo, {"labels/classes.txt": "cat\ndog\n"})
    else:
        fill(yolo, {"data.yaml": YOLO_YAML + text})
    assert [coco["annotations"] for coco in convert(yolo).values()] == expected
    if text:
        assert len(convert(yolo / "data.yaml")) == 2


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
    assert convert(fill(yolo, {"data.yaml": text})) == expected
    (yolo / "data.yaml").unlink()
    assert convert(yolo, "--format", "yolo", "--classes", "cat", "dog") == expected


def test_yolo_folders_with_names_of_their_own(yolo: Path) -> None:
    """Which a data.yaml gives to the splits; of labels with key points, the boxes are taken."""
    for part in ("images", "labels"):
        for old, new in (("train", "Set1"), ("val", "set2")):
            (yolo / part / old).rename(yolo / part / new)
    text = "train: [./images/Set1]\nval: images/set2.txt\nnames: [cat, dog]\nkpt_shape: [2, 2]\n"
    label = "1 0.5 0.5 0.25 0.5 0.1 0.1 0.9 0.9\n"
    fill(yolo, {"data.yaml": text, "labels/Set1/a.txt": label, "labels/set2/c.txt": label})
    boxes = [("dog", [30, 15, 20, 30], 0)]
    splits = convert(yolo)
    assert boxes_by_file(splits["train"]) == {"a.jpg": boxes, "b.png": []}
    assert boxes_by_file(splits["val"]) == {"c.jpg": boxes}


def test_yolo_folders_below_a_shared_one(yolo: Path) -> None:
    """``data/train`` and ``data/val``: what both have in their paths tells nothing."""
    for split in ("train", "val"):
        (yolo / "data" / split).mkdir(parents=True)
        for part in ("images", "labels"):
            for file in (yolo / part / split).iterdir():
                file.rename(yolo / "data" / split / file.name)
    fill(yolo, {"data.yaml": "train: data/train\nval: data/val\nnames: [cat, dog]\n"})
    assert file_names(convert(yolo)) == {"train": {"a.jpg", "b.png"}, "val": {"c.jpg"}}


def test_fractions_have_no_first_pixel(yolo: Path) -> None:
    assert convert(yolo, "--origin", "1") == convert(yolo)


LABEL = "0 0.5 0.5 0.25 0.5\n"


def one_folder(root: Path, images: str = "images", labels: str = "labels") -> Path:
    """Images 0 to 4 in one folder, and nothing in their paths that tells a split."""
    files: dict[str, Any] = {f"{images}/{k}.jpg": None for k in range(5)}
    return fill(root, files | {f"{labels}/{k}.txt": LABEL for k in range(5)})


@pytest.mark.parametrize(
    "data",
    [
        "path: .\ntrain: train.txt\nval: val.txt\n",
        "path: ../set\ntrain: [train.txt]\nval: [[val.txt]]\n",
        "path: /not/here\ntrain: data/train.txt\nvalid: ../val.txt\n",
    ],
)
@pytest.mark.parametrize(
    "prefix", ["./images/", "images/", "data/images/", "C:\\\\set\\\\images\\\\", ""]
)
def test_lists_of_images(
    tmp_path: Path, data: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images that are in no list are not in the dataset."""
    folder = one_folder(tmp_path / "set")
    lists = {"train.txt": [0, 1], "val.txt": [2, 3, 9]}
    files = {name: "".join(f"{prefix}{k}.jpg\n" for k in ids) for name, ids in lists.items()}
    fill(folder, files | {"data.yaml": f"{data}names: {{0: car}}\n"})
    expected = {"train": {"0.jpg", "1.jpg"}, "val": {"2.jpg", "3.jpg"}}
    assert file_names(convert(folder)) == expected
    assert f"lists {prefix}9.jpg, which is not there" in capsys.readouterr().out
    assert file_names(convert(folder / "data.yaml")) == expected


@pytest.mark.parametrize("described", ["obj.data", "lists", "folders"])
def test_darknet(tmp_path: Path, described: str) -> None:
    """As CVAT's "YOLO 1.1" exports it: obj.names, obj.data, lists, images beside their labels."""
    files: dict[str, Any] = {"obj.names": "car\n"}
    for k, part in enumerate(("train", "train", "valid", "valid")):
        files |= {f"obj_{part}_data/{k}.jpg": None, f"obj_{part}_data/{k}.txt": LABEL}
    if described != "folders":
        for part, ids in (("train", (0, 1)), ("valid", (2, 3))):
            names = (f"data/obj_{part}_data/{k}.jpg\n" for k in ids)
            files[f"{part}.txt"] = "".join(names)
    if described == "obj.data":
        files["obj.data"] = (
            "classes = 1\ntrain = data/train.txt\nvalid = data/valid.txt\n"
            "names = data/obj.names\nbackup = backup/\n"
        )
    folder = fill(tmp_path / "set", files)
    expected = {"train": {"0.jpg", "1.jpg"}, "val": {"2.jpg", "3.jpg"}}
    splits = convert(folder)
    assert file_names(splits) == expected
    assert splits["val"]["categories"] == [{"id": 1, "name": "car"}]
    if described == "obj.data":
        assert file_names(convert(folder / "obj.data")) == expected


def test_folders_with_the_same_ends(tmp_path: Path) -> None:
    """``a/day/images`` and ``b/day/images``; a folder in another belongs to the nearer."""
    files: dict[str, Any] = {
        "data.yaml": "train: [a/day]\nval: a/day/images/own\ntest: b/day\nnames: [car]"
    }
    for k, part in enumerate(("a/day/{}", "a/day/{}/own", "b/day/{}")):
        files |= {
            f"{part.format('images')}/{k}.jpg": None,
            f"{part.format('labels')}/{k}.txt": LABEL,
        }
    names = file_names(convert(fill(tmp_path / "set", files)))
    assert names == {"train": {"0.jpg"}, "val": {"1.jpg"}, "test": {"2.jpg"}}


def test_a_description_below_the_dataset(tmp_path: Path) -> None:
    """Whose ``path`` leads to it."""
    folder = one_folder(tmp_path / "set", "images/train", "labels/train")
    fill(folder, {"conf/my.yaml": "path: ..\ntrain: images/train\nval: images/val\nnames: [car]"})
    assert len(convert(folder / "conf/my.yaml")["train"]["images"]) == 5


@pytest.mark.parametrize(
    "line",
    [
        "1.0 0.5 0.5 0.25 0.5",
        "1.000000000000000000e+00 5.0e-01 0.5 0.25 0.5",
        "1,0.5,0.5,0.25,0.5",
        "1, 0.5, 0.5, 0.25, 0.5,",
        "\t1  0.5\t0.5 0.25 0.5  ",
    ],
)
def test_numbers(yolo: Path, line: str) -> None:
    fill(yolo, {"labels/train/a.txt": line})
    found = boxes_by_file(convert(yolo)["train"])
    assert found["a.jpg"] == [("dog", [30, 15, 20, 30], 0)]


@pytest.mark.parametrize("label", ["1.5", "-1", "2.0", "nan", "inf", "dog"])
def test_numbers_that_are_no_class(yolo: Path, label: str) -> None:
    fill(yolo, {"labels/train/a.txt": f"{label} 0.5 0.5 0.25 0.5"})
    with pytest.raises(UserError, match="there are 2 classes, with the whole numbers from 0"):
        convert(yolo)
