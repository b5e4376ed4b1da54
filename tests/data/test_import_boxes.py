"""``dgnet import`` on single files: shapes, columns, COCO's own format, and images that were
resized or turned since they were labelled. Against hand computations."""

import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.imported_sets import SIZE, boxes_by_file, convert, convert_file, fill, turned_by, voc
from PIL import Image
from pycocotools import mask as mask_tools

from dgnet_cli import import_dataset
from dgnet_det.errors import UserError

BOX = (10, 8, 25, 20)  # left, top, right and bottom, in an image of STATED size
STATED = (40, 30)  # half of SIZE


def labels(layout: str, stated: tuple[int, int], image: str = "a.jpg") -> dict[str, Any]:
    """A file of a format that states the image's size and has ``BOX``."""
    (w, h), (x0, y0, x1, y1) = stated, BOX
    files = {
        "voc": {"a.xml": voc(("car", *BOX, 0), ("x", 0, 0, w, h, 0), filename=image, size=stated)},
        "labelme": {"a.json": {
            "shapes": [{"label": "car", "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle"}],
            "imagePath": image, "imageWidth": w, "imageHeight": h,
        }},
        "cvat": {"a.xml": f'<annotations><image name="{image}" width="{w}" height="{h}"><box label='
                 f'"car" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}"/></image></annotations>'},
        "csv": {"a.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n"
                f"{image},{w},{h},car,{x0},{y0},{x1},{y1}\n"},
        "csv_whxy": {"a.csv": "filename,image_width,image_height,class,x,y,width,height\n"
                     f"{image},{w},{h},car,{x0},{y0},{x1 - x0},{y1 - y0}\n"},
        "coco": {"a.json": coco(image, stated)},
    }  # fmt: skip
    return files[layout]


def coco(image: str = "a.jpg", size: tuple[int, int] = SIZE, **values: Any) -> dict[str, Any]:
    """COCO's JSON of one object; ``...`` takes one of its values out."""
    x0, y0, x1, y1 = BOX
    bbox = [x0, y0, x1 - x0, y1 - y0]
    entry = {"id": 0, "image_id": 7, "category_id": 3, "bbox": bbox, "area": 180, "iscrowd": 0}
    return {
        "images": [{"id": 7, "file_name": image, "width": size[0], "height": size[1]}],
        "annotations": [{k: v for k, v in (entry | values).items() if v is not ...}],
        "categories": [{"id": 3, "name": "car"}],
    }


LAYOUTS = ["voc", "labelme", "cvat", "csv", "csv_whxy", "coco"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resized_images(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "set", labels(layout, STATED) | {"a.jpg": None})
    boxes = boxes_by_file(convert(folder)["train"])["a.jpg"]
    assert boxes[0] == ("car", [20, 16, 30, 24], 0)
    assert "a.jpg: its labels are for a size of 40 × 30: scaled" in capsys.readouterr().out
    for unscaled in (SIZE, (0, 0)):  # which some tools write
        fill(folder, labels(layout, unscaled))
        assert boxes_by_file(convert(folder)["train"])["a.jpg"][0] == ("car", [10, 8, 15, 12], 0)
        assert "size of" not in capsys.readouterr().out
    fill(folder, labels(layout, (50, 50)))  # of another image
    with pytest.raises(UserError, match=r"a.jpg: 80 × 60 pixels, but .* for a size of 50 × 50"):
        convert(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", ["jpg", "tif", "png", "webp"])
@pytest.mark.parametrize(
    ("tag", "box"),
    # Of left 10, top 8, right 25, bottom 20 in 80 × 60 pixels
    [(5, [8, 10, 12, 15]), (6, [40, 10, 12, 15]), (7, [40, 55, 12, 15]), (8, [8, 55, 12, 15])],
)
def test_turned_images(
    tmp_path: Path, layout: str, ending: str, tag: int, box: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Where the size is stated as it is stored, boxes are turned as the image is."""
    image = f"a.{ending}"
    folder = fill(tmp_path / "set", labels(layout, SIZE, image))
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(folder / image, exif=turned_by(tag))
    found = convert(folder)["train"]
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (60, 80)
    assert boxes_by_file(found)[image][0] == ("car", box, 0)
    assert "size of 80 × 60: turned by its EXIF tag" in capsys.readouterr().out
    if tag == 6:
        fill(folder, labels(layout, STATED, image))  # resized as well
        assert boxes_by_file(convert(folder)["train"])[image][0][1] == [20, 20, 24, 30]
        fill(folder, labels(layout, (60, 80), image))  # as it is read
        assert boxes_by_file(convert(folder)["train"])[image][0][1] == [10, 8, 15, 12]


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("tag", [1, 6])
def test_masks_and_keypoints_follow(tmp_path: Path, runs: bool, tag: int) -> None:
    pixels = np.zeros((STATED[1], STATED[0]), np.uint8)
    pixels[8:20, 10:25] = 1
    mask: Any = [[10, 8, 25, 8, 25, 20, 10, 20]]
    if runs:
        mask = mask_tools.encode(np.asfortranarray(pixels))
        mask = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
    points = [10, 8, 2, 0, 0, 0]
    content = coco("a.png", STATED, segmentation=mask, keypoints=points, num_keypoints=1)
    folder = fill(tmp_path / "set", {"a.json": content})
    Image.new("L", SIZE).save(folder / "a.png", exif=turned_by(tag))
    (found,) = convert(folder)["train"]["annotations"]
    assert found["area"] == 180 * 4
    width, height = SIZE if tag == 1 else SIZE[::-1]
    expected = np.kron(pixels, np.ones((2, 2), np.uint8))
    expected = expected if tag == 1 else np.rot90(expected, -1)
    seen = found["segmentation"]
    encoded = seen if runs else mask_tools.frPyObjects(seen, height, width)[0]
    assert np.array_equal(mask_tools.decode(encoded), expected)
    # The pixel's centre (10.5, 8.5) becomes (21, 17), and (60 - 17, 21) where it is turned.
    first = [20.5, 16.5, 2] if tag == 1 else [42.5, 20.5, 2]
    assert found["keypoints"] == [*first, 0, 0, 0]


def labelme(kind: str | None, points: list, **values: Any) -> dict[str, Any]:
    shape = {"label": "car", "shape_type": kind, "points": points, **values}
    return {"shapes": [shape], "imagePath": "a.jpg"}


def cvat(shapes: str) -> str:
    return f'<annotations><image name="a.jpg" width="80" height="60">{shapes}</image></annotations>'


ROTATED = voc(("car", 20, 20, 70, 30, 0), ("x", 0, 0, 1, 1, 0)).replace(
    "<bndbox>",
    "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    "<bndbox>",
    1,
)
TRIANGLE, LINE = [[1, 2], [9, 4], [5, 8]], [[1, 2], [9, 4]]
ELLIPSE = '<ellipse label="car" cx="40" cy="30" rx="20" ry="10"'
HALF = 250**0.5  # √((20² + 10²) / 2)
TURN = [40, 0, 10, 50]  # [20, 20, 50, 10] turned by 90°
POLYGONS = [[1, 2, 9, 4, 5, 8], [20, 3, 22, 3, 21, 9]]
# An annotation file, and the box of its first object.
ONE_BOX = [
    ("a.json", labelme("circle", [[40, 30], [43, 34]]), [35, 25, 10, 10]),
    ("a.json", labelme("rotation", [[20, 10], [60, 5], [62, 30], [22, 35]]), [20, 5, 42, 30]),
    ("a.json", labelme("polygon", TRIANGLE), [1, 2, 8, 6]),
    ("a.json", labelme(None, TRIANGLE), [1, 2, 8, 6]),
    ("a.json", labelme("quadrilateral", [*TRIANGLE, [1, 9]]), [1, 2, 8, 7]),
    ("a.json", labelme("mask", LINE, mask=""), [1, 2, 8, 2]),
    ("a.xml", cvat('<mask label="car" rle="1, 2" left="3" top="4" width="20" height="10"/>'),
     [3, 4, 20, 10]),
    ("a.xml", cvat(f"{ELLIPSE}/>"), [20, 20, 40, 20]),
    ("a.xml", cvat(f'{ELLIPSE} rotation="90"/>'), [30, 10, 20, 40]),
    ("a.xml", cvat(f'{ELLIPSE} rotation="45"/>'), [40 - HALF, 30 - HALF, 2 * HALF, 2 * HALF]),
    ("a.xml", ROTATED, TURN),
    ("a.json", coco(bbox=[20, 20, 50, 10], area=500, attributes={"rotation": 90.0}), TURN),
    ("a.json", coco(bbox=[20, 20, 50, 10], area=500, rotation=90), TURN),
    ("a.json", coco(bbox=..., area=147, segmentation=POLYGONS), [1, 2, 21, 7]),
    ("a.csv", "image,x,y,w,h,class\na.jpg,10,8,15,12,car", [10, 8, 15, 12]),
    ("a.csv", "filename,class,x,y,width,height\na.jpg,car,10,8,15,12", [10, 8, 15, 12]),
    ("a.csv", "filename,class,left,top,width,height\na.jpg,car,10,8,15,12", [10, 8, 15, 12]),
    ("a.csv", "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image,image_width,class\n"
     "x,10,8,15,12,a.jpg,80,car", [10, 8, 15, 12]),
    ("a.csv", 'image_id,width,height,bbox,class\na,80,60,"[10, 8, 15.0, 12]",car',
     [10, 8, 15, 12]),
    ("a.csv", "path,label,x1,y1,x2,y2,w,h\nC:\\data\\a.jpg,car,10,8,25,20,15,12", [10, 8, 15, 12]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "box"), ONE_BOX)
def test_boxes_of_shapes_and_columns(
    tmp_path: Path, name: str, content: Any, box: list[float]
) -> None:
    found = convert_file(tmp_path, name, content)
    assert found["annotations"][0]["bbox"] == pytest.approx(box, rel=1e-12, abs=1e-12)
    assert found["annotations"][0]["area"] == pytest.approx(box[2] * box[3])
    assert found["categories"][found["annotations"][0]["category_id"] - 1]["name"] == "car"


def test_shapes_that_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = '<polyline label="car" points="1,1;2,2"/><cuboid label="car"/><tag label="night"/>'
    assert len(convert_file(tmp_path, "a.xml", cvat(f"{ELLIPSE}/>{others}"))["annotations"]) == 1
    assert "a.jpg: has polyline, cuboid: only boxes and areas" in capsys.readouterr().out


def test_labelme_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parts of one object; another label, or no group, is another object."""
    shapes = [
        labelme("rectangle", points, label=label, group_id=group)["shapes"][0]
        for label, points, group in (
            ("car", [[5, 5], [20, 30]], 7), ("car", [[40, 2], [60, 29]], 7),
            ("wheel", [[6, 6], [8, 8]], 7), ("car", [[5, 5], [20, 30]], None),
            ("car", [[0, 0], [1, 1]], None), ("car", [[9, 9], [10, 10]], 0),
        )
    ]  # fmt: skip
    boxes = boxes_by_file(convert_file(tmp_path, "a.json", {"shapes": shapes}))["a.jpg"]
    assert [(name, box) for name, box, _ in boxes] == [
        ("car", [5, 2, 55, 28]), ("wheel", [6, 6, 2, 2]), ("car", [5, 5, 15, 25]),
        ("car", [0, 0, 1, 1]), ("car", [9, 9, 1, 1]),
    ]  # fmt: skip
    assert "1 shapes are joined to others of their label and group_id" in capsys.readouterr().out


def test_coco_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids from 1, names of files by base name, Roboflow's root left out, nothing else changed."""
    kept = {"bbox": [0.1, 0.2, 0.3, 30.7], "area": 5.5, "segmentation": [[1.5, 2, 9, 4, 5, 8]]}
    content = coco("upload\\1\\a.jpg", **kept)
    content["annotations"].append(content["annotations"][0] | {"iscrowd": 1, "bbox": [1, 2, 3, 4]})
    content["images"].append({"id": 0, "file_name": "http://host/b%20c.jpg?d=1"})
    content["categories"][0] |= {"supercategory": "car", "keypoints": ["nose"], "skeleton": []}
    content["categories"].insert(0, {"id": 0, "name": "car", "supercategory": "none"})
    files = {"export/result.json": content, "export/images/a.jpg": None}
    folder = fill(tmp_path / "set", files | {"export/images/b c.jpg": None})
    found = convert(folder)["train"]
    assert [image["file_name"] for image in found["images"]] == ["a.jpg", "b c.jpg"]
    assert [image["id"] for image in found["images"]] == [1, 2]
    assert found["categories"] == [content["categories"][1] | {"id": 1}]
    first, crowd = found["annotations"]
    assert first == {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, **kept}
    assert (crowd["id"], crowd["iscrowd"]) == (2, 1)
    assert "category 'car', the supercategory of the others, is left out" in capsys.readouterr().out
    assert convert(folder / "export/result.json")["train"]["annotations"] == found["annotations"]


@pytest.mark.parametrize("packed", [False, True])
def test_roboflow(tmp_path: Path, packed: bool) -> None:
    """A file in the folder of each split, as a folder or a zip; the ids of classes may differ."""
    files: dict[str, Any] = {}
    for split, number in (("train", 3), ("valid", 8), ("test", 3)):
        content = coco(category_id=number)
        content["categories"] = [{"id": number, "name": "car"}, {"id": 50, "name": "bus"}]
        files |= {f"{split}/_annotations.coco.json": content, f"{split}/a.jpg": None}
    folder = fill(tmp_path / "set", files)
    if packed:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for name in files:
                archive.write(folder / name, name)
        folder = tmp_path / "set.zip"
    splits = convert(folder)
    assert set(splits) == {"train", "val", "test"}
    for found in splits.values():
        assert boxes_by_file(found) == {"a.jpg": [("car", [10, 8, 15, 12], 0)]}
        assert [c["name"] for c in found["categories"]] == ["car", "bus"]
    assert (tmp_path / "coco/set/valid/a.jpg").is_file() is packed


def test_zips_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.zip: no valid archive: "):
        convert(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(UserError, match="looks like none of"):
        convert(tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_cvats_names_of_files(tmp_path: Path) -> None:
    """``annotations/instances_Train.json`` with ``images/Train``; beside it, keypoints of the same
    images."""
    files: dict[str, Any] = {}
    for split in ("Train", "Validation"):
        files[f"images/{split}/a.jpg"] = None
        files[f"annotations/instances_{split}.json"] = coco(f"{split}/a.jpg")
    folder = fill(tmp_path / "set", files)
    assert set(convert(folder)) == {"train", "val"}
    fill(folder, {"annotations/person_keypoints_Train.json": coco("Train/a.jpg")})
    with pytest.raises(UserError, match=r"has a\.jpg, as .*instances_Train\.json: name one of"):
        convert(folder)


def test_coco_split_by_groups(tmp_path: Path) -> None:
    content = coco("0.jpg")
    content["images"] = [
        {"id": k, "file_name": f"v{k // 4}_{k}.jpg", "width": 80, "height": 60} for k in range(12)
    ]
    files: dict[str, Any] = {f"all/{image['file_name']}": None for image in content["images"]}
    folder = fill(tmp_path / "set", files | {"all.json": content})
    splits = convert(folder, "--val-share", "0.33", "--group-by", "^(v.)_")
    names = {s: {i["file_name"][:2] for i in found["images"]} for s, found in splits.items()}
    for _ in range(2):  # what was written before is no part of the dataset
        import_dataset.main([str(folder), str(folder / "own/../coco"), "--val-share", "0.33"])
    assert len(json.loads((folder / "coco/val.json").read_text())["images"]) == 4
    assert len(names["val"]) == 1
    assert not names["train"] & names["val"]


def test_coco_of_loose_types(tmp_path: Path) -> None:
    """Ids as decimals or texts, or none of annotations; numbers and flags in quotes; the name of a
    file as Label Studio changes it."""
    values = {"id": ..., "image_id": 7.0, "category_id": "3", "bbox": ["10", "8", "15.0", "12"]}
    content = coco("1/0a1b2c3d-a.jpg", iscrowd="0", **values)
    content["annotations"].append(content["annotations"][0] | {"iscrowd": True})
    boxes = boxes_by_file(convert_file(tmp_path, "a.json", content))
    assert boxes == {"a.jpg": [("car", [10, 8, 15, 12], 0), ("car", [10, 8, 15, 12], 1)]}


@pytest.mark.parametrize(
    ("segmentation", "kept"),
    [
        *((none, False) for none in ([[20, 15, 50, 40]], [20, 15, 50, 40], [[]], [], None, "", {})),
        ({"size": [60, 80], "counts": [0, 9]}, False),
        ({"size": [60, 80], "counts": [0, 4800]}, True),
        ([[1, 2, 9, 4, 5, 8]], True),
    ],
)
def test_coco_masks_that_are_none(tmp_path: Path, segmentation: Any, kept: bool) -> None:
    (found,) = convert_file(tmp_path, "a.json", coco(segmentation=segmentation))["annotations"]
    assert found["bbox"] == [10, 8, 15, 12]
    assert ("segmentation" in found) is kept


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_two_unicode_forms(tmp_path: Path, layout: str, forms: tuple[Any, Any]) -> None:
    name, on_disk = (unicodedata.normalize(form, "Café_ü.jpg") for form in forms)
    files = {file.replace("a.", "b."): text for file, text in labels(layout, SIZE, name).items()}
    folder = fill(tmp_path / "set", files | {on_disk: None})
    assert set(boxes_by_file(convert(folder)["train"])) == {on_disk}
    if layout == "voc":  # by the XML's own name, in a split by a list
        (folder / "b.xml").rename(folder / f"{on_disk[:-4]}.xml")
        fill(folder, {"ImageSets/Main/val.txt": name.replace(".jpg", "\n")})
        assert set(boxes_by_file(convert(folder)["val"])) == {on_disk}


def test_csv_that_lacks_columns(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", {"a.csv": "image,class,x,y\na.jpg,car,1,2\n", "a.jpg": None})
    for path in (folder, folder / "a.csv"):
        with pytest.raises(UserError, match=r"a\.csv: .* no column for xmax, ymax: have one for"):
            convert(path)


# A file, its format, and what is wrong with it.
CVAT_BOX = '<box label="a" xtl="1" ytl="2" xbr="3" ybr="4" rotation="?"/>'
BAD_FILES = [
    ("x.json", {"version": 1}, "labelme", "it has no 'shapes'"),
    ("x.csv", "image,class,xmin,ymin,xmax\n", "csv", "its first line names no column for ymax:"),
    ("x.csv", "image,class,x,y,w,h\na,b,1,2,wide,4\n", "csv", "line 2: no box of numbers"),
    ("x.csv", "image,class,x,y,w,h\n,b,1,2,3,4\n", "csv", "line 2: names no image"),
    ("x.xml", "<annotations><track/></annotations>", "cvat", "it is in the format CVAT for video"),
    ("x.xml", cvat(CVAT_BOX), "cvat", "image a.jpg: object 1: no box of numbers"),
    ("x.xml", cvat('<polygon label="a" points="1,2;9;5,8"/>'), "cvat", "image a.jpg: object 1: no"),
    ("x.json", coco(image_id=9), "coco", "annotation 0: its image 9 or category 3 is not there"),
    ("x.json", coco(category_id=9), "coco", "annotation 0: its image 7 or category 9 is not there"),
    ("x.json", coco(bbox=[1, 2, 3]), "coco", "annotation 0: no box of numbers"),
    ("x.json", coco(bbox=[1, 2, -3, 4]), "coco", "annotation 0: no box of numbers"),
    ("x.json", coco(keypoints=[1, 2]), "coco", "annotation 0: its keypoints are not x, y and vis"),
]


@pytest.mark.parametrize(("file", "content", "layout", "part"), BAD_FILES)
def test_bad_file(tmp_path: Path, file: str, content: Any, layout: str, part: str) -> None:
    path = fill(tmp_path / "set", {file: content, "a.jpg": None}) / file
    with pytest.raises(UserError) as caught:
        convert(path, "--format", layout)
    assert str(caught.value).startswith(f"{path}: not read as {layout}: {part}")
    assert not (tmp_path / "coco").exists()
