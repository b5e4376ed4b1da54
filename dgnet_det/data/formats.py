"""What the annotation files of labelling tools say: Pascal VOC, LabelMe, CVAT, CSV, YOLO and COCO.

Of everything but an upright box, such as a polygon or a circle, the upright box around it is taken.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

from dgnet_det.data.coco import is_mask, read_coco, rotation
from dgnet_det.data.coco_checks import FRACTION_LIMIT, fills
from dgnet_det.data.shapes import (
    around,
    around_centre,
    around_circle,
    around_ellipse,
    beside_corner,
    turned,
)
from dgnet_det.errors import UserError, first_few

# Names of a CSV file's columns, by what is in them. A file without a header has HEADERLESS.
CSV_COLUMNS = {
    "image": ("filename", "file_name", "image", "image_path", "path", "image_id", "imageid"),
    "class": ("class", "label", "class_name", "labelname", "category", "name"),
    "xmin": ("xmin", "x_min", "x1", "left", "x", "bbox_x"),
    "ymin": ("ymin", "y_min", "y1", "top", "y", "bbox_y"),
    "xmax": ("xmax", "x_max", "x2", "right"),
    "ymax": ("ymax", "y_max", "y2", "bottom"),
    "w": ("w", "bbox_w", "bbox_width", "box_width"),
    "h": ("h", "bbox_h", "bbox_height", "box_height"),
    "bbox": ("bbox",),
    "image_width": ("image_width", "img_width", "imagewidth"),
    "image_height": ("image_height", "img_height", "imageheight"),
    "crowd": ("difficult", "isgroupof"),
}
SIDES = ("xmin", "ymin", "xmax", "ymax")
HEADERLESS = ("image", *SIDES, "class")
LABELME_AREAS = ("rectangle", "polygon", "mask", "rotation", "quadrilateral")  # by their corners
NO_AREA = "has {}: only boxes and areas are taken"


class Malformed(ValueError):
    """What is wrong with a file, which :func:`read_annotations` names."""


class LabelledObject(NamedTuple):
    """An object: its class, its left, top, right and bottom as the file counts them, whether
    training and evaluation leave it out, as it is *difficult* or a group, and COCO's fields."""

    name: str
    ltrb: tuple[float, ...]
    crowd: bool = False
    coco: dict[str, Any] = {}  # noqa: RUF012


class Labels(NamedTuple):
    """What a file says of one image."""

    names: tuple[str, ...]  # by which the image is found, the best first
    objects: list[LabelledObject]
    fractions: bool = False  # whether boxes are fractions of the image, not pixels
    split: str = ""  # that the file puts the image in, if it does
    size: tuple[float, float] | None = None  # width and height when it was labelled, if stated
    notes: dict[str, str] = {}  # noqa: RUF012  what to tell the user, by the kind of finding


def _read_voc(path: Path) -> Iterator[Labels]:
    root = _read_xml(path, "annotation")
    objects = []
    for number, node in enumerate(root.findall("object"), 1):
        sides: Iterable[Any] = (node.findtext(f"bndbox/{side}") for side in SIDES)
        for attribute in node.iter("attribute"):  # CVAT's
            if attribute.findtext("name") == "rotation":
                sides = turned(sides, attribute.findtext("value"))
        crowd = _is_true(node.findtext("difficult"))
        objects.append(_object(f"object {number}", node.findtext("name"), sides, crowd))
    size = _size(root.findtext("size/width"), root.findtext("size/height"))
    yield Labels((path.stem, root.findtext("filename", "")), objects, size=size)


def _read_labelme(path: Path) -> Iterator[Labels]:
    """Shapes of one label and ``group_id`` are the parts of one object."""
    content = json.loads(read_text(path))
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise Malformed("it has no 'shapes'")
    found: dict[Any, LabelledObject] = {}
    left_out, parts = [], 0
    for number, shape in enumerate(shapes, 1):
        kind, group = shape.get("shape_type") or "polygon", shape.get("group_id")
        points = shape.get("points")
        if kind != "circle" and kind not in LABELME_AREAS:
            left_out.append(kind)
            continue
        sides = around_circle(points) if kind == "circle" else around(points)
        part = _object(f"shape {number}", shape.get("label"), sides)
        key = number if group is None else (part.name, str(group))
        if key in found:
            parts += 1
            both = (found[key].ltrb[:2], found[key].ltrb[2:], part.ltrb[:2], part.ltrb[2:])
            part = part._replace(ltrb=tuple(around(both)))
        found[key] = part
    notes = {"shape": NO_AREA.format(first_few(left_out))} if left_out else {}
    if parts:
        notes["group"] = f"{parts} shapes are joined to others of their label and group_id"
    names = (path.stem, str(content.get("imagePath") or ""))
    size = _size(content.get("imageWidth"), content.get("imageHeight"))
    yield Labels(names, list(found.values()), size=size, notes=notes)


def _read_cvat(path: Path) -> Iterator[Labels]:
    root = _read_xml(path, "annotations")
    if root.find("track") is not None:
        raise Malformed("it is in the format CVAT for video: export CVAT for images")
    for image in root.iter("image"):
        objects, left_out = [], []
        for number, node in enumerate(image, 1):
            if node.tag == "box":
                sides: Iterable[Any] = map(node.get, ("xtl", "ytl", "xbr", "ybr"))
                sides = turned(sides, node.get("rotation") or 0)
            elif node.tag == "polygon":
                sides = around(point.split(",") for point in node.get("points", "").split(";"))
            elif node.tag == "mask":
                sides = beside_corner(map(node.get, ("left", "top", "width", "height")))
            elif node.tag == "ellipse":
                radii = map(node.get, ("cx", "cy", "rx", "ry"))
                sides = around_ellipse(radii, node.get("rotation") or 0)
            else:
                left_out += [node.tag] * (node.tag != "tag")  # which is of the whole image
                continue
            where = f"image {image.get('name')}: object {number}"
            objects.append(_object(where, node.get("label"), sides))
        notes = {"shape": NO_AREA.format(first_few(left_out))} if left_out else {}
        size = _size(image.get("width"), image.get("height"))
        names, split = (image.get("name", ""),), image.get("subset", "")
        yield Labels(names, objects, split=split, size=size, notes=notes)


def _read_csv(path: Path) -> Iterator[Labels]:
    """There is a row for each box, in columns that have names of ``CSV_COLUMNS``. Where all
    coordinates of a file are at most 1, they are fractions of the image, as Open Images has them. A
    row without coordinates is an image without objects."""
    rows = _csv_rows(path)
    columns = _csv_columns(rows)
    if missing := [meaning for meaning in HEADERLESS if meaning not in columns]:
        raise Malformed(
            f"its first line names no column for {', '.join(missing)}: have one for each of"
            f" {', '.join(HEADERLESS)}, or w and h for xmax and ymax"
        )
    images: dict[str, Labels] = {}
    for number, row in enumerate(rows, 1):
        cells = {meaning: row[k].strip() for meaning, k in columns.items() if k < len(row)}
        if not any(row) or (number == 1 and cells["image"].lower() in CSV_COLUMNS["image"]):
            continue
        if not cells.get("image"):
            raise Malformed(f"line {number}: names no image")
        size = _size(cells.get("image_width"), cells.get("image_height"))
        labels = images.setdefault(cells["image"], Labels((cells["image"],), [], size=size))
        sides: Iterable[Any] = [cells.get(side) for side in SIDES]
        if columns["xmin"] == columns["xmax"]:
            sides = beside_corner(re.findall(r"[^\s,;\[\]()]+", cells.get("bbox", "")))
        elif "w" in columns:
            sides = beside_corner(cells.get(side) for side in ("xmin", "ymin", "w", "h"))
        if any(cells.get(side) for side in SIDES):
            crowd = _is_true(cells.get("crowd"))
            labels.objects.append(_object(f"line {number}", cells.get("class"), sides, crowd))
    values = [v for labels in images.values() for each in labels.objects for v in each.ltrb]
    fractions = max(values, default=math.inf) <= FRACTION_LIMIT
    for labels in images.values():
        yield labels._replace(fractions=fractions)


def has_box_columns(path: Path) -> bool:
    """Whether a CSV file has all columns of boxes."""
    return set(HEADERLESS) <= _csv_columns(_csv_rows(path)).keys()


def _read_yolo(path: Path, classes: Sequence[str], keypoints: bool = False) -> Iterator[Labels]:
    """For each object there is a line with the number of its class from 0, then the centre's x and
    y, width and height as fractions of the image, or a polygon. Key points behind a box and a
    detector's confidence, a sixth number, are passed over. Numbers may be decimals, such as 1.0,
    and have commas between them."""
    objects = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = re.split(r"[\s,]+", line.strip().strip(","))
        where = f"line {number}, {line.strip()[:60]!r}"
        if not words[0]:
            continue
        label, *values = words
        try:
            index = float(label)
        except ValueError:
            index = -1
        if index not in range(len(classes)):
            raise Malformed(
                f"{where}: there are {len(classes)} classes, with the whole numbers from 0"
            )
        if len(values) > 5 and not keypoints:
            sides = around(zip(values[::2], values[1::2], strict=True))
        else:
            sides = around_centre(values[:4])
        found = _object(where, classes[int(index)], sides)
        if max(map(abs, found.ltrb)) > 1.5 * FRACTION_LIMIT:  # half of the largest box outside
            raise Malformed(f"{where}: not fractions of the image: divide by its width and height")
        objects.append(found)
    yield Labels((path.stem,), objects, fractions=True)


def _read_coco(path: Path) -> Iterator[Labels]:
    """Boxes with a rotation are turned; masks and keypoints are kept with upright ones."""
    coco = read_coco(str(path))
    names = {
        coco_id(category, "id", f"category {number}"): _field(
            category, "name", f"category {number}"
        )
        for number, category in enumerate(coco["categories"], 1)
    }
    images: dict[str, Labels] = {}
    for number, image in enumerate(coco["images"], 1):
        identity = coco_id(image, "id", f"image {number}")
        if identity in images:
            raise Malformed(f"two images have the id {identity}")
        file = re.sub(r"\?.*", "", str(_field(image, "file_name", f"image {number}")))  # of a link
        own = re.sub(r"^(.*[/\\])?[0-9a-f]{8}-", "", file)  # Label Studio puts this before a name
        size = _size(image.get("width"), image.get("height"))
        images[identity] = Labels((file, unquote(file), unquote(own)), [], size=size, notes={})
    for number, annotation in enumerate(coco["annotations"], 1):
        image_id = coco_id(annotation, "image_id", f"annotation {number}")
        where = f"annotation {annotation.get('id', number)}"
        category_id = coco_id(annotation, "category_id", where)
        if image_id not in images or category_id not in names:
            raise Malformed(f"{where}: its image {image_id} or category {category_id} is not there")
        labels = images[image_id]
        sides, kept = _coco_box(annotation, where, labels.notes)
        crowd = any(_is_true(str(annotation.get(key))) for key in ("iscrowd", "ignore"))
        found = _object(where, names[category_id], sides, crowd)
        labels.objects.append(found._replace(coco=kept))
    yield from images.values()


def _coco_box(
    annotation: dict[str, Any], where: str, notes: dict[str, str]
) -> tuple[Iterable[Any], dict[str, Any]]:
    """The sides of an annotation's box, and the fields that are kept beside it."""
    fields = ("bbox", "area", "segmentation", "keypoints", "num_keypoints")
    kept = {key: annotation[key] for key in fields if annotation.get(key) is not None}
    mask = kept.pop("segmentation", None)
    if is_mask(mask) and (isinstance(mask, list) or fills(mask)):
        kept["segmentation"] = mask
    elif mask:
        notes["mask"] = "a 'segmentation' that is no mask is left out"
    if len(kept.get("keypoints", ())) % 3:
        raise Malformed(f"{where}: its keypoints are not x, y and visibility of each")
    if not isinstance(kept.get("area", 0), (int, float)):
        del kept["area"]
    sides = beside_corner(kept.get("bbox", ()))
    if "bbox" not in kept and isinstance(kept.get("segmentation"), list):
        sides = around(p for m in mask for p in zip(m[::2], m[1::2], strict=False))
    elif any(isinstance(value, str) for value in kept.get("bbox") or ()):
        del kept["bbox"]  # numbers in quotes
    if (degrees := rotation(annotation)) % 180:
        notes["turned"] = "a box with a rotation becomes the upright box around it"
        return turned(sides, degrees), {}
    return sides, kept


# By format: the ending of its files, and what gives the images of one.
READERS: dict[str, tuple[str, Callable[..., Iterator[Labels]]]] = {
    "voc": (".xml", _read_voc),
    "labelme": (".json", _read_labelme),
    "cvat": (".xml", _read_cvat),
    "csv": (".csv", _read_csv),
    "yolo": (".txt", _read_yolo),
    "coco": (".json", _read_coco),
}


def read_annotations(layout: str, path: Path, **options: Any) -> list[Labels]:
    """What a file says of its images, in a format of ``READERS``. ``options`` are for YOLO: the
    names of the ``classes``, and whether there are ``keypoints``.

    Raises:
        UserError: it is of another format, or an object has no class or no box.
    """
    try:
        return list(READERS[layout][1](path, **options))
    except (Malformed, ElementTree.ParseError, json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not read as {layout}: {error}") from error


def read_text(path: Path) -> str:
    """The content of a file in UTF-8, with or without a byte-order mark.

    Raises:
        UserError: it is not there, or in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text in UTF-8: {error}") from error


def _read_xml(path: Path, tag: str) -> ElementTree.Element:
    root = ElementTree.parse(path).getroot()
    if root.tag != tag:
        raise Malformed(f"it holds <{root.tag}>, not <{tag}>")
    return root


def _csv_rows(path: Path) -> list[list[str]]:
    lines = read_text(path).splitlines() or [""]
    return list(csv.reader(lines, delimiter=max(",;\t", key=lines[0].count)))


def _csv_columns(rows: list[list[str]]) -> dict[str, int]:
    """The place of each column by what is in it. ``width`` and ``height`` are the image's where
    others give the box. A box in one column, ``bbox``, stands for all sides."""
    header = [name.strip().lower() for name in rows[0]]
    found = {
        meaning: header.index(alias)
        for meaning, aliases in CSV_COLUMNS.items()
        for alias in reversed(aliases)
        if alias in header
    }
    if not found and len(header) == len(HEADERLESS):
        return {meaning: k for k, meaning in enumerate(HEADERLESS)}
    given = {"xmax", "w", "bbox"} & found.keys()
    for name, meaning in (("width", "w"), ("height", "h")):
        if name in header:
            found.setdefault(f"image_{name}" if given else meaning, header.index(name))
    if {"xmax", "ymax"} <= found.keys():
        found.pop("w", None)
    elif {"xmin", "ymin", "w", "h"} <= found.keys():
        found |= {"xmax": found["w"], "ymax": found["h"]}
    elif "bbox" in found:
        found |= dict.fromkeys(SIDES, found["bbox"])
    return found


def _field(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise Malformed(f"{where}: has no {key!r}")
    return entry[key]


def coco_id(entry: Any, key: str, where: str) -> str:
    """An id as text; a decimal such as 1.0 is the same as 1."""
    value = _field(entry, key, where)
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _is_true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "1.0", "true")


def _size(width: Any, height: Any) -> tuple[float, float] | None:
    """A stated size; None where there is none, or a zero in its place."""
    try:
        size = float(width), float(height)
    except (TypeError, ValueError):
        return None
    return size if all(0 < side < math.inf for side in size) else None


def _object(where: str, name: Any, sides: Iterable[Any], crowd: bool = False) -> LabelledObject:
    """An object. Its sides are numbers or texts, and may raise as they are computed."""
    if not isinstance(name, str) or not name.strip():
        raise Malformed(f"{where}: has no class: name it")
    try:
        left, top, right, bottom = ltrb = tuple(map(float, sides))
        sound = left <= right and top <= bottom and all(map(math.isfinite, ltrb))
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise Malformed(f"{where}: no box of numbers, left ≤ right, top ≤ bottom: correct it")
    return LabelledObject(name.strip(), ltrb, crowd)
