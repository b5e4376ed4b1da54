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


def test_key_points_behind_boxes(yolo: Path) -> None:
    text = YOLO_YAML + "names: [cat, dog]\nkpt_shape: [2, 2]\n"
    label = "1 0.5 0.5 0.25 0.5 0.1 0.1 0.9 0.9\n"
    fill(yolo, {"data.yaml": text, "labels/train/a.txt": label})
    assert boxes_by_file(convert(yolo)["train"])["a.jpg"] == [("dog", [30, 15, 20, 30], 0)]


def test_fractions_have_no_first_pixel(yolo: Path) -> None:
    assert convert(yolo, "--origin", "1") == convert(yolo)


LABEL = "0 0.5 0.5 0.25 0.5\n"


# A description, and the folders of images and labels, {}, with the split that each is in.
FOLDERS: list[tuple[str, str, dict[str, str]]] = [
    # Names of their own; paths that start one folder off; what all have in their paths
    ("data.yaml", "train: [./images/Set1]\nval: images/set2.txt",
     {"{}/Set1": "train", "{}/set2": "val"}),
    ("data.yaml", "train: ../train/images\nval: ../valid/images",
     {"train/{}": "train", "valid/{}": "val"}),
    ("data.yaml", "train: data/train\nval: data/val", {"data/train": "train", "data/val": "val"}),
    # The same ends; a folder in another belongs to the nearer
    ("data.yaml", "train: [a/day]\nval: a/day/images/own\ntest: b/day",
     {"a/day/{}": "train", "a/day/{}/own": "val", "b/day/{}": "test"}),
    # A description below the dataset, whose path leads to it
    ("conf/my.yaml", "path: ..\ntrain: images/train\nval: images/val", {"{}/train": "train"}),
    ("data.yaml", "", {"train/{}": "train", "valid/{}": "val", "{}/testing": "test"}),
    ("obj.names", "", {"obj_train_data": "train", "obj_valid_data": "val"}),  # CVAT's "YOLO 1.1"
]  # fmt: skip


@pytest.mark.parametrize(("file", "data", "folders"), FOLDERS)
def test_folders_of_splits(tmp_path: Path, file: str, data: str, folders: dict[str, str]) -> None:
    files: dict[str, Any] = {file: f"{data}\nnames: [car]\n" if ".yaml" in file else "car\n"}
    for k, folder in enumerate(folders):
        files[f"{folder.format('images')}/{k}.jpg"] = None
        files[f"{folder.format('labels')}/{k}.txt"] = LABEL
    root = fill(tmp_path / "set", files)
    names = file_names(convert(root / file if "/" in file else root))
    assert names == {split: {f"{k}.jpg"} for k, split in enumerate(folders.values())}
    if not data:  # the names of folders tell
        (root / file).unlink()
        assert file_names(convert(root, "--format", "yolo", "--classes", "car")) == names


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
    images: dict[str, Any] = {f"images/{k}.jpg": None for k in range(5)}
    images |= {f"labels/{k}.txt": LABEL for k in range(5)}
    folder = fill(tmp_path / "set", images)
    lists = {"train.txt": [0, 1], "val.txt": [2, 3, 9]}
    files = {name: "".join(f"{prefix}{k}.jpg\n" for k in ids) for name, ids in lists.items()}
    fill(folder, files | {"data.yaml": f"{data}names: {{0: car}}\n"})
    expected = {"train": {"0.jpg", "1.jpg"}, "val": {"2.jpg", "3.jpg"}}
    assert file_names(convert(folder)) == expected
    assert f"lists {prefix}9.jpg, which is not there" in capsys.readouterr().out
    assert file_names(convert(folder / "data.yaml")) == expected


@pytest.mark.parametrize("described", [True, False])
def test_darknets_lists(tmp_path: Path, described: bool) -> None:
    """As CVAT's "YOLO 1.1" exports them: obj.names, obj.data, lists, images beside their labels."""
    files: dict[str, Any] = {"obj.names": "car\n"}
    for k, part in enumerate(("train", "train", "valid", "valid")):
        files |= {f"data/{k}.jpg": None, f"data/{k}.txt": LABEL}
        files[f"{part}.txt"] = files.get(f"{part}.txt", "") + f"data/data/{k}.jpg\n"
    if described:
        files["obj.data"] = (
            "classes = 1\ntrain = data/train.txt\nvalid = data/valid.txt\n"
            "names = data/obj.names\nbackup = backup/\n"
        )
    folder = fill(tmp_path / "set", files)
    for path in (folder, folder / "obj.data")[: 1 + described]:
        splits = convert(path)
        assert file_names(splits) == {"train": {"0.jpg", "1.jpg"}, "val": {"2.jpg", "3.jpg"}}
        assert splits["val"]["categories"] == [{"id": 1, "name": "car"}]


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
