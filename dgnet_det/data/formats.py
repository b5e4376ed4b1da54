"""What the annotation files of labelling tools say: Pascal VOC, LabelMe, CVAT, CSV and YOLO.

Of a polygon and of a rotated box, the upright box around it is taken.
"""

import cmath
import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from dgnet_det.errors import UserError

SIDES = ("xmin", "ymin", "xmax", "ymax")
# Names of a CSV file's columns, and what is in them. A file without a header has HEADERLESS.
CSV_COLUMNS = {
    "image": ("filename", "file_name", "image", "image_path", "path", "image_id", "imageid"),
    "class": ("class", "label", "class_name", "labelname", "category", "name"),
    "xmin": ("xmin", "x_min", "x1", "left"),
    "ymin": ("ymin", "y_min", "y1", "top"),
    "xmax": ("xmax", "x_max", "x2", "right"),
    "ymax": ("ymax", "y_max", "y2", "bottom"),
    "width": ("width",),
    "height": ("height",),
    "crowd": ("difficult", "isgroupof"),
}
HEADERLESS = ("image", *SIDES, "class")
# As fractions of the image, boxes end at 1, or a little beyond by rounding.
FRACTION_LIMIT = 1.01


class Box(NamedTuple):
    """An object: its class, its left, top, right and bottom as the file counts them, and whether
    training and evaluation leave it out, as it is *difficult* or a group."""

    name: str
    ltrb: tuple[float, float, float, float]
    crowd: bool = False


class Entry(NamedTuple):
    """What a file says of one image.

    Attributes:
        file: that says it.
        names: by which the image may be found.
        boxes: its objects.
        size: width and height that the file states, pixels; None if it does not.
        fractions: whether the boxes are fractions of the image, not pixels.
        split: that the file puts the image in, if it does.
        others: kinds of shapes that have no box and are left out.
    """

    file: Path
    names: tuple[str, ...]
    boxes: list[Box]
    size: tuple[int, int] | None = None
    fractions: bool = False
    split: str = ""
    others: tuple[str, ...] = ()


def read_voc(path: Path) -> list[Entry]:
    """The one image of an XML file of Pascal VOC's, found by the file's stem or ``<filename>``.

    Raises:
        UserError: as all readers here: it is no such file, or an object has no class or no box.
    """
    root = _read_xml(path, "annotation")
    boxes = []
    for number, node in enumerate(root.findall("object"), 1):
        sides = [node.findtext(f"bndbox/{side}") for side in SIDES]
        crowd = _is_true(node.findtext("difficult"))
        boxes.append(_box(f"{path}: object {number}", node.findtext("name"), sides, crowd))
    size = _size(path, root.findtext("size/width"), root.findtext("size/height"))
    return [Entry(path, (path.stem, root.findtext("filename") or ""), boxes, size)]


def read_labelme(path: Path) -> list[Entry]:
    """The one image of a JSON file of LabelMe's, found by the file's stem or ``imagePath``."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{path}: no LabelMe JSON: it has no list 'shapes'")
    boxes, others = [], []
    for number, shape in enumerate(content["shapes"], 1):
        kind = shape.get("shape_type", "polygon")
        if kind in ("rectangle", "polygon", "mask"):
            crowd = bool((shape.get("flags") or {}).get("difficult"))
            where = f"{path}: shape {number}"
            boxes.append(_hull(where, shape.get("label"), shape.get("points"), crowd))
        else:
            others.append(kind)
    names = (path.stem, str(content.get("imagePath") or ""))
    size = _size(path, content.get("imageWidth"), content.get("imageHeight"))
    return [Entry(path, names, boxes, size, others=tuple(others))]


def read_cvat(path: Path) -> list[Entry]:
    """The images of an XML file of "CVAT for images"."""
    root = _read_xml(path, "annotations")
    if root.find("track") is not None:
        raise UserError(f"{path}: is in the format CVAT for video: export CVAT for images")
    entries = []
    for image in root.iter("image"):
        boxes, others = [], []
        for number, node in enumerate(image, 1):
            where = f"{path}: image {image.get('name')}: object {number}"
            if node.tag == "box":
                sides = [node.get(side) for side in ("xtl", "ytl", "xbr", "ybr")]
                box = _box(where, node.get("label"), sides)
                boxes.append(_turned(where, box, node.get("rotation", "0")))
            elif node.tag == "polygon":
                points = [point.split(",") for point in node.get("points", "").split(";")]
                boxes.append(_hull(where, node.get("label"), points))
            elif node.tag != "tag":  # of the whole image
                others.append(node.tag)
        names, size = (image.get("name", ""),), _size(path, image.get("width"), image.get("height"))
        split = image.get("subset", "").lower().replace("default", "")
        entries.append(Entry(path, names, boxes, size, split=split, others=tuple(others)))
    return entries


def read_csv(path: Path) -> list[Entry]:
    """The images of a CSV file, which has a row for each box.

    The columns have names of ``CSV_COLUMNS``; ``width`` and ``height`` are the image's. Where all
    coordinates of a file are at most 1, they are fractions of the image, as Open Images has them. A
    row without coordinates is an image without objects.
    """
    rows = _csv_rows(path)
    columns = _csv_columns(rows)
    if missing := [name for name in HEADERLESS if name not in columns]:
        names = " or ".join(CSV_COLUMNS[missing[0]])
        raise UserError(f"{path}: no column {names}: its first line must name the columns")
    entries: dict[str, Entry] = {}
    for number, row in enumerate(rows, 1):
        cells = {name: row[k].strip() for name, k in columns.items() if k < len(row)}
        if not any(row) or (number == 1 and cells["xmin"].lower() in CSV_COLUMNS["xmin"]):
            continue
        name, size = cells["image"], _size(path, cells.get("width"), cells.get("height"))
        entry = entries.setdefault(name, Entry(path, (name,), [], size))
        sides = [cells.get(side) for side in SIDES]
        if any(sides):
            where, crowd = f"{path}: line {number}", _is_true(cells.get("crowd"))
            entry.boxes.append(_box(where, cells.get("class"), sides, crowd))
    values = [x for entry in entries.values() for box in entry.boxes for x in box.ltrb]
    fractions = max(values, default=math.inf) <= FRACTION_LIMIT
    return [entry._replace(fractions=fractions) for entry in entries.values()]


def has_box_columns(path: Path) -> bool:
    """Whether a CSV file has all columns of boxes."""
    return set(HEADERLESS) <= _csv_columns(_csv_rows(path)).keys()


def _csv_columns(rows: list[list[str]]) -> dict[str, int]:
    """The numbers of the columns, by what is in them; empty if none is known."""
    header = [name.strip().lower() for name in rows[0]] if rows else []
    found = {
        meaning: header.index(alias)
        for meaning, aliases in CSV_COLUMNS.items()
        for alias in reversed(aliases)
        if alias in header
    }
    if not found and len(header) == len(HEADERLESS):
        found = {meaning: k for k, meaning in enumerate(HEADERLESS)}
    return found


def read_yolo(path: Path, classes: Sequence[str], keypoints: bool = False) -> Entry:
    """The image of a label file of YOLO's. A line for each object has the number of its class from
    0, then the centre's x and y, width and height as fractions of the image, or a polygon.

    Args:
        path: the file.
        classes: their names.
        keypoints: whether key points follow each box. Else, a sixth number is a detector's
            confidence, which is passed over as they are.
    """
    boxes = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        label, *values = line.split() or [""]
        where = f"{path}: line {number}, {line.strip()[:60]!r}"
        if not label:
            continue
        if not label.isdecimal() or int(label) >= len(classes):
            raise UserError(f"{where}: there are {len(classes)} classes, numbered from 0")
        name = classes[int(label)]
        if len(values) > 5 and not keypoints:
            box = _hull(where, name, zip(values[::2], values[1::2], strict=True))
        else:
            x, y, w, h = _numbers(where, values[:4])
            box = _box(where, name, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        if max(map(abs, box.ltrb)) > 1.5 * FRACTION_LIMIT:  # half of the largest box outside
            raise UserError(f"{where}: not fractions of the image: divide by its width and height")
        boxes.append(box)
    return Entry(path, (path.stem,), boxes, fractions=True)


# By format: the ending of its files, and what gives the images of one.
READERS: dict[str, tuple[str, Callable[[Path], list[Entry]]]] = {
    "voc": (".xml", read_voc),
    "labelme": (".json", read_labelme),
    "cvat": (".xml", read_cvat),
    "csv": (".csv", read_csv),
}
FORMATS = (*READERS, "yolo")


def read_text(path: Path) -> str:
    """The content of a file in UTF-8, with or without a byte-order mark.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no text in UTF-8: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON: {error}") from error


def _read_xml(path: Path, tag: str) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise UserError(f"{path}: no valid XML: {error}") from error
    if root.tag != tag:
        raise UserError(f"{path}: it holds <{root.tag}>, not <{tag}>: another format than this")
    return root


def _csv_rows(path: Path) -> list[list[str]]:
    lines = read_text(path).splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    return list(csv.reader(lines, delimiter=delimiter))


def _is_true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true")


def _size(path: Path, width: Any, height: Any) -> tuple[int, int] | None:
    try:
        size = int(float(width or 0)), int(float(height or 0))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the size is no number: correct it or take it out") from error
    return size if all(size) else None


def _numbers(where: str, values: Iterable[Any], count: int = 4) -> list[float]:
    try:
        numbers = list(map(float, values))
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where}: has no box of finite numbers: correct it")
    return numbers


def _box(where: str, name: Any, sides: Iterable[Any], crowd: bool = False) -> Box:
    left, top, right, bottom = _numbers(where, sides)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: has no class: name it")
    if left > right or top > bottom:
        raise UserError(f"{where}: not left ≤ right and top ≤ bottom: correct its box")
    return Box(name.strip(), (left, top, right, bottom), crowd)


def _hull(where: str, name: Any, points: Any, crowd: bool = False) -> Box:
    try:
        x, y = zip(*((float(x), float(y)) for x, y in points), strict=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: has no points of two numbers each: correct it") from error
    return _box(where, name, (min(x), min(y), max(x), max(y)), crowd)


def _turned(where: str, box: Box, degrees: str) -> Box:
    """The box around one that is turned around its centre."""
    (angle,) = _numbers(where, [degrees], 1)
    left, top, right, bottom = box.ltrb
    turn, centre = cmath.rect(1, math.radians(angle)), complex(left + right, top + bottom) / 2
    corners = [complex(x, y) for x in (left, right) for y in (top, bottom)]
    turned = [(corner - centre) * turn + centre for corner in corners] if angle else corners
    return _hull(where, box.name, [(corner.real, corner.imag) for corner in turned])
