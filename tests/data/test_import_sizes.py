"""``dgnet import`` on images that were resized or turned since they were labelled, on COCO's
own format, and on shapes, against hand computations."""

import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.imported_sets import SIZE, boxes_by_file, convert, fill, voc
from PIL import Image
from pycocotools import mask as mask_tools

from dgnet_cli import import_dataset
from dgnet_det.errors import UserError

BOX = (10, 8, 25, 20)  # left, top, right and bottom, in an image of STATED size
STATED = (40, 30)  # half of SIZE


def labels(layout: str, stated: tuple[int, int], image: str = "a.jpg") -> dict[str, str]:
    """A file of a format that states the image's size and has ``BOX``."""
    (w, h), (x0, y0, x1, y1) = stated, BOX
    texts = {
        "voc": ("a.xml", voc(("car", *BOX, 0), ("x", 0, 0, w, h, 0), filename=image, size=stated)),
        "labelme": ("a.json", json.dumps({
            "shapes": [{"label": "car", "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle"}],
            "imagePath": image, "imageWidth": w, "imageHeight": h,
        })),
        "cvat": ("a.xml", f'<annotations><image name="{image}" width="{w}" height="{h}"><box label='
                 f'"car" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}"/></image></annotations>'),
        "csv": ("a.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n"
                f"{image},{w},{h},car,{x0},{y0},{x1},{y1}\n"),
        "csv_whxy": ("a.csv", "filename,image_width,image_height,class,x,y,width,height\n"
                     f"{image},{w},{h},car,{x0},{y0},{x1 - x0},{y1 - y0}\n"),
        "coco": ("a.json", json.dumps(coco(image, stated))),
    }  # fmt: skip
    file, text = texts[layout]
    return {file: text}


def coco(image: str, size: tuple[int, int], **values: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = BOX
    bbox = [x0, y0, x1 - x0, y1 - y0]
    annotation = {"id": 0, "image_id": 7, "category_id": 3, "bbox": bbox, "area": 180, "iscrowd": 0}
    return {
        "images": [{"id": 7, "file_name": image, "width": size[0], "height": size[1]}],
        "annotations": [annotation | values],
        "categories": [{"id": 3, "name": "car"}],
    }


LAYOUTS = ["voc", "labelme", "cvat", "csv", "csv_whxy", "coco"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resized_images(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "set", labels(layout, STATED) | {"a.jpg": None})
    boxes = boxes_by_file(convert(folder)["train"])["a.jpg"]
    assert boxes[0] == ("car", [20, 16, 30, 24], 0)
    assert "a.jpg: its labels are for a size of 40 × 30: scaled" in capsys.readouterr().out
    fill(folder, labels(layout, SIZE))
    assert boxes_by_file(convert(folder)["train"])["a.jpg"][0] == ("car", [10, 8, 15, 12], 0)
    assert "size of" not in capsys.readouterr().out


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
    """Whose size is stated as it is stored: the boxes are turned as the image is."""
    exif = Image.Exif()
    exif[0x112] = tag
    image = f"a.{ending}"
    folder = fill(tmp_path / "set", labels(layout, SIZE, image))
    pixels = np.zeros((60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(folder / image, exif=exif)
    found = convert(folder)["train"]
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (60, 80)
    assert boxes_by_file(found)[image][0] == ("car", box, 0)
    assert "size of 80 × 60: turned by its EXIF tag" in capsys.readouterr().out
    if tag == 6:
        fill(folder, labels(layout, STATED, image))  # resized as well
        assert boxes_by_file(convert(folder)["train"])[image][0][1] == [20, 20, 24, 30]
        fill(folder, labels(layout, (60, 80), image))  # as it is read
        assert boxes_by_file(convert(folder)["train"])[image][0][1] == [10, 8, 15, 12]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_image(tmp_path: Path, layout: str) -> None:
    folder = fill(tmp_path / "set", labels(layout, (50, 50)) | {"a.jpg": None})
    with pytest.raises(UserError, match=r"a.jpg: 80 × 60 pixels, but .* for a size of 50 × 50"):
        convert(folder)
    fill(folder, labels(layout, (0, 0)))  # which some tools write
    assert boxes_by_file(convert(folder)["train"])["a.jpg"][0] == ("car", [10, 8, 15, 12], 0)


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
    folder = fill(tmp_path / "set", {"a.json": json.dumps(content)})
    exif = Image.Exif()
    exif[0x112] = tag
    Image.new("L", SIZE).save(folder / "a.png", exif=exif)
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


def test_coco_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids from 1, names of files by base name, Roboflow's root left out, nothing else changed."""
    kept = {"bbox": [0.1, 0.2, 0.3, 30.7], "area": 5.5, "segmentation": [[1.5, 2, 9, 4, 5, 8]]}
    content = coco("upload\\1\\a.jpg", SIZE, **kept)
    content["annotations"].append(content["annotations"][0] | {"iscrowd": 1, "bbox": [1, 2, 3, 4]})
    content["images"].append({"id": 0, "file_name": "http://host/b%20c.jpg?d=1"})
    content["categories"][0] |= {"supercategory": "car", "keypoints": ["nose"], "skeleton": []}
    content["categories"].insert(0, {"id": 0, "name": "car", "supercategory": "none"})
    files = {"export/result.json": json.dumps(content), "export/images/a.jpg": None}
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
        content = coco("a.jpg", SIZE, category_id=number)
        content["categories"] = [{"id": number, "name": "car"}, {"id": 50, "name": "bus"}]
        files |= {f"{split}/_annotations.coco.json": json.dumps(content), f"{split}/a.jpg": None}
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
    if packed:
        assert (tmp_path / "coco/set/valid/a.jpg").is_file()


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
    content = json.dumps(coco("Train/a.jpg", SIZE))
    names = [f"annotations/instances_{split}.json" for split in ("Train", "Validation")]
    files = {"images/Train/a.jpg": None, "images/Validation/a.jpg": None, names[0]: content}
    folder = fill(tmp_path / "set", files | {names[1]: content.replace("Train", "Validation")})
    splits = convert(folder)
    assert set(splits) == {"train", "val"}
    fill(folder, {"annotations/person_keypoints_Train.json": content})
    with pytest.raises(UserError, match=r"has a\.jpg, as .*instances_Train\.json: name one of"):
        convert(folder)


def test_coco_split_by_groups(tmp_path: Path) -> None:
    content = coco("0.jpg", SIZE)
    content["images"] = [
        {"id": k, "file_name": f"v{k // 4}_{k}.jpg", "width": 80, "height": 60} for k in range(12)
    ]
    files: dict[str, Any] = {f"all/{image['file_name']}": None for image in content["images"]}
    folder = fill(tmp_path / "set", files | {"all.json": json.dumps(content)})
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
    content = coco("1/0a1b2c3d-a.jpg", SIZE, image_id=7.0, category_id="3", iscrowd="0")
    del content["annotations"][0]["id"]
    content["annotations"][0]["bbox"] = ["10", "8", "15.0", "12"]
    content["annotations"].append(content["annotations"][0] | {"iscrowd": True})
    folder = fill(tmp_path / "set", {"a.json": json.dumps(content), "a.jpg": None})
    boxes = boxes_by_file(convert(folder)["train"])
    assert boxes == {"a.jpg": [("car", [10, 8, 15, 12], 0), ("car", [10, 8, 15, 12], 1)]}


def test_coco_without_boxes(tmp_path: Path) -> None:
    """The box around the polygons is taken."""
    content = coco("a.jpg", SIZE, segmentation=[[1, 2, 9, 4, 5, 8], [20, 3, 22, 3, 21, 9]])
    del content["annotations"][0]["bbox"]
    folder = fill(tmp_path / "set", {"a.json": json.dumps(content), "a.jpg": None})
    assert convert(folder)["train"]["annotations"][0]["bbox"] == [1, 2, 21, 7]


@pytest.mark.parametrize("place", ["attributes", "top"])
def test_coco_boxes_with_a_rotation(tmp_path: Path, place: str) -> None:
    values = {"attributes": {"rotation": 90.0}} if place == "attributes" else {"rotation": 90}
    content = coco("a.jpg", SIZE, bbox=[20, 20, 50, 10], **values)
    folder = fill(tmp_path / "set", {"a.json": json.dumps(content), "a.jpg": None})
    (found,) = convert(folder)["train"]["annotations"]
    assert found["bbox"] == pytest.approx([40, 0, 10, 50])
    assert found["area"] == pytest.approx(500)


@pytest.mark.parametrize(
    ("segmentation", "kept"),
    [
        ([[20, 15, 50, 40]], False),
        ([20, 15, 50, 40], False),
        ([[]], False),
        ([], False),
        (None, False),
        ("", False),
        ({}, False),
        ({"size": [60, 80], "counts": [0, 9]}, False),
        ([[1, 2, 9, 4, 5, 8]], True),
        ({"size": [60, 80], "counts": [0, 4800]}, True),
    ],
)
def test_coco_masks_that_are_none(tmp_path: Path, segmentation: Any, kept: bool) -> None:
    content = coco("a.jpg", SIZE, segmentation=segmentation)
    folder = fill(tmp_path / "set", {"a.json": json.dumps(content), "a.jpg": None})
    (found,) = convert(folder)["train"]["annotations"]
    assert found["bbox"] == [10, 8, 15, 12]
    assert ("segmentation" in found) is kept


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"image_id": 9}, "annotation 0: its image 9 or category 3 is not there"),
        ({"category_id": 9}, "annotation 0: its image 7 or category 9 is not there"),
        ({"bbox": [1, 2, 3]}, "annotation 0: no box of numbers"),
        ({"keypoints": [1, 2]}, "annotation 0: its keypoints are not x, y and visibility"),
        ({"bbox": [1, 2, -3, 4]}, "annotation 0: no box of numbers"),
    ],
)
def test_bad_coco(tmp_path: Path, values: dict[str, Any], part: str) -> None:
    content = coco("a.jpg", SIZE, **values)
    folder = fill(tmp_path / "set", {"a.json": json.dumps(content), "a.jpg": None})
    with pytest.raises(UserError, match=f"a.json: not read as coco: {part}"):
        convert(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_two_unicode_forms(tmp_path: Path, layout: str, forms: tuple[Any, Any]) -> None:
    name, on_disk = (unicodedata.normalize(form, "Café_ü.jpg") for form in forms)
    files = labels(layout, SIZE, name)
    files = {file.replace("a.", "b."): text for file, text in files.items()}
    folder = fill(tmp_path / "set", files | {on_disk: None})
    assert set(boxes_by_file(convert(folder)["train"])) == {on_disk}
    if layout == "voc":  # by the XML's own name, in a split by a list
        (folder / "b.xml").rename(folder / f"{on_disk[:-4]}.xml")
        fill(folder, {"ImageSets/Main/val.txt": name.replace(".jpg", "\n")})
        assert set(boxes_by_file(convert(folder)["val"])) == {on_disk}


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"shape_type": "circle", "points": [[40, 30], [43, 34]]}, [35, 25, 10, 10]),
        (
            {"shape_type": "rotation", "points": [[20, 10], [60, 5], [62, 30], [22, 35]]},
            [20, 5, 42, 30],
        ),
        ({"shape_type": "polygon", "points": [[1, 2], [9, 4], [5, 8]]}, [1, 2, 8, 6]),
        ({"shape_type": None, "points": [[1, 2], [9, 4], [5, 8]]}, [1, 2, 8, 6]),
        ({"shape_type": "quadrilateral", "points": [[1, 2], [9, 4], [5, 8], [1, 9]]}, [1, 2, 8, 7]),
        ({"shape_type": "mask", "points": [[1, 2], [9, 4]], "mask": ""}, [1, 2, 8, 2]),
    ],
)
def test_labelme_shapes(tmp_path: Path, shape: dict[str, Any], box: list[int]) -> None:
    text = json.dumps({"shapes": [{"label": "car", **shape}], "imagePath": "a.jpg"})
    folder = fill(tmp_path / "set", {"a.json": text, "a.jpg": None})
    assert boxes_by_file(convert(folder)["train"])["a.jpg"] == [("car", box, 0)]


def test_labelme_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parts of one object; another label, or no group, is another object."""
    shapes = [
        {"label": label, "points": points, "shape_type": "rectangle", "group_id": group}
        for label, points, group in (
            ("car", [[5, 5], [20, 30]], 7), ("car", [[40, 2], [60, 29]], 7),
            ("wheel", [[6, 6], [8, 8]], 7), ("car", [[5, 5], [20, 30]], None),
            ("car", [[0, 0], [1, 1]], None), ("car", [[9, 9], [10, 10]], 0),
        )
    ]  # fmt: skip
    text = json.dumps({"shapes": shapes, "imagePath": "a.jpg"})
    folder = fill(tmp_path / "set", {"a.json": text, "a.jpg": None})
    boxes = boxes_by_file(convert(folder)["train"])["a.jpg"]
    assert [(name, box) for name, box, _ in boxes] == [
        ("car", [5, 2, 55, 28]), ("wheel", [6, 6, 2, 2]), ("car", [5, 5, 15, 25]),
        ("car", [0, 0, 1, 1]), ("car", [9, 9, 1, 1]),
    ]  # fmt: skip
    assert "1 shapes are joined to others of their label and group_id" in capsys.readouterr().out


def test_cvat_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """<annotations><image name="a.jpg" width="80" height="60">
    <mask label="car" rle="1, 2" left="3" top="4" width="20" height="10"/>
    <ellipse label="car" cx="40" cy="30" rx="20" ry="10"/>
    <ellipse label="car" cx="40" cy="30" rx="20" ry="10" rotation="90"/>
    <ellipse label="car" cx="40" cy="30" rx="20" ry="10" rotation="45"/>
    <polyline label="car" points="1,1;2,2"/><cuboid label="car"/></image></annotations>"""
    folder = fill(tmp_path / "set", {"a.xml": text, "a.jpg": None})
    boxes = [box for _, box, _ in boxes_by_file(convert(folder)["train"])["a.jpg"]]
    half = (250) ** 0.5  # √((20² + 10²) / 2)
    expected = [[3, 4, 20, 10], [20, 20, 40, 20], [30, 10, 20, 40]]
    assert np.allclose(boxes, [*expected, [40 - half, 30 - half, 2 * half, 2 * half]])
    assert "a.jpg: has polyline, cuboid: only boxes and areas" in capsys.readouterr().out


def test_voc_of_cvat_with_a_rotation(tmp_path: Path) -> None:
    turn = (
        "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    )
    text = voc(("car", 20, 20, 70, 30, 0)).replace("<bndbox>", f"{turn}<bndbox>")
    folder = fill(tmp_path / "set", {"a.xml": text, "a.jpg": None})
    ((_, box, _),) = boxes_by_file(convert(folder, "--origin", "0")["train"])["a.jpg"]
    assert box == pytest.approx([40, 0, 10, 50])


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image,x,y,w,h,class", "a.jpg,10,8,15,12,car"),
        ("filename,class,x,y,width,height", "a.jpg,car,10,8,15,12"),
        ("filename,class,left,top,width,height", "a.jpg,car,10,8,15,12"),
        ("label_name,bbox_x,bbox_y,bbox_width,bbox_height,image,image_width,image_height,class",
         "x,10,8,15,12,a.jpg,80,60,car"),
        ("image_id,width,height,bbox,class", 'a,80,60,"[10, 8, 15.0, 12]",car'),
        ("path,label,x1,y1,x2,y2,w,h", "C:\\data\\a.jpg,car,10,8,25,20,15,12"),
    ],
)  # fmt: skip
def test_csv_columns(tmp_path: Path, header: str, row: str) -> None:
    folder = fill(tmp_path / "set", {"a.csv": f"{header}\n{row}\n", "a.jpg": None})
    assert boxes_by_file(convert(folder)["train"])["a.jpg"] == [("car", [10, 8, 15, 12], 0)]


def test_csv_that_lacks_columns(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", {"a.csv": "image,class,x,y\na.jpg,car,1,2\n", "a.jpg": None})
    for path in (folder, folder / "a.csv"):
        with pytest.raises(UserError, match=r"a\.csv: .* no column for xmax, ymax: have one for"):
            convert(path)
