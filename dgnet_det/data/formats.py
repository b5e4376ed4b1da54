"""What the annotation files of labelling tools say: Pascal VOC, LabelMe, CVAT, CSV and YOLO.

Of a polygon and of a turned box, the upright box around it is taken.
"""

import cmath
import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from dgnet_det.data.coco_checks import FRACTION_LIMIT
from dgnet_det.errors import UserError

# Names of a CSV file's columns, by what is in them. A file without a header has HEADERLESS.
CSV_COLUMNS = {
    "image": ("filename", "file_name", "image", "image_path", "path", "image_id", "imageid"),
    "class": ("class", "label", "class_name", "labelname", "category", "name"),
    "xmin": ("xmin", "x_min", "x1", "left"),
    "ymin": ("ymin", "y_min", "y1", "top"),
    "xmax": ("xmax", "x_max", "x2", "right"),
    "ymax": ("ymax", "y_max", "y2", "bottom"),
    "crowd": ("difficult", "isgroupof"),
}
HEADERLESS = ("image", "xmin", "ymin", "xmax", "ymax", "class")


class Box(NamedTuple):
    """An object: its class, its left, top, right and bottom as the file counts them, and whether
    training and evaluation leave it out, as it is *difficult* or a group."""

    name: str
    ltrb: tuple[float, float, float, float]
    crowd: bool = False


class Entry(NamedTuple):
    """What a file says of one image.

    Attributes:
        names: by which the image is found, the best first.
        boxes: its objects.
        fractions: whether they are fractions of the image, not pixels.
        split: that the file puts the image in, if it does.
        left_out: kinds of its shapes that are no boxes.
    """

    names: tuple[str, ...]
    boxes: list[Box]
    fractions: bool = False
    split: str = ""
    left_out: tuple[str, ...] = ()


def read_voc(path: Path) -> Iterator[Entry]:
    """The one image of an XML file of Pascal VOC's. All readers here raise :class:`UserError` for a
    file that is of another format, or an object without a class or a box."""
    root = _read_xml(path, "annotation")
    boxes = []
    for number, node in enumerate(root.findall("object"), 1):
        sides = [node.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        crowd = _is_true(node.findtext("difficult"))
        boxes.append(_box(f"{path}: object {number}", node.findtext("name"), sides, crowd))
    yield Entry((path.stem, root.findtext("filename", "")), boxes)


def read_labelme(path: Path) -> Iterator[Entry]:
    """The one image of a JSON file of LabelMe's."""
    try:
        content = json.loads(read_text(path))
        shapes = [(shape.get("shape_type", "polygon"), shape) for shape in content["shapes"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no LabelMe JSON with 'shapes': {error}") from error
    boxes = [
        _hull(f"{path}: shape {number}", shape.get("label"), shape.get("points"))
        for number, (kind, shape) in enumerate(shapes, 1)
        if kind in ("rectangle", "polygon", "mask")
    ]
    left_out = [kind for kind, _ in shapes if kind not in ("rectangle", "polygon", "mask")]
    names = (path.stem, str(content.get("imagePath") or ""))
    yield Entry(names, boxes, left_out=tuple(left_out))


def read_cvat(path: Path) -> Iterator[Entry]:
    """The images of an XML file of "CVAT for images"."""
    root = _read_xml(path, "annotations")
    if root.find("track") is not None:
        raise UserError(f"{path}: is in the format CVAT for video: export CVAT for images")
    for image in root.iter("image"):
        boxes, left_out = [], []
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
                left_out.append(node.tag)
        split = image.get("subset", "")
        yield Entry((image.get("name", ""),), boxes, split=split, left_out=tuple(left_out))


def read_csv(path: Path) -> Iterator[Entry]:
    """The images of a CSV file with a row for each box, in columns that have names of
    ``CSV_COLUMNS``. Where all coordinates of a file are at most 1, they are fractions of the image,
    as Open Images has them. A row without coordinates is an image without objects."""
    rows = _csv_rows(path)
    columns = _csv_columns(rows)
    for meaning in HEADERLESS:
        if meaning not in columns:
            names = " or ".join(CSV_COLUMNS[meaning])
            raise UserError(f"{path}: no column {names}: its first line must name the columns")
    images: dict[str, list[Box]] = {}
    for number, row in enumerate(rows, 1):
        cells = {meaning: row[k].strip() for meaning, k in columns.items() if k < len(row)}
        if not any(row) or (number == 1 and cells["xmin"].lower() in CSV_COLUMNS["xmin"]):
            continue
        boxes, sides = (
            images.setdefault(cells["image"], []),
            [cells.get(s) for s in HEADERLESS[1:5]],
        )
        if any(sides):
            crowd = _is_true(cells.get("crowd"))
            boxes.append(_box(f"{path}: line {number}", cells.get("class"), sides, crowd))
    values = [value for boxes in images.values() for box in boxes for value in box.ltrb]
    fractions = max(values, default=math.inf) <= FRACTION_LIMIT
    for name, boxes in images.items():
        yield Entry((name,), boxes, fractions)


def has_box_columns(path: Path) -> bool:
    """Whether a CSV file has all columns of boxes."""
    return set(HEADERLESS) <= _csv_columns(_csv_rows(path)).keys()


def read_yolo(path: Path, classes: Sequence[str], keypoints: bool = False) -> Iterator[Entry]:
    """The image of a label file of YOLO's: for each object a line with the number of its class from
    0, then the centre's x and y, width and height as fractions of the image, or a polygon.

    Args:
        path: the file.
        classes: their names.
        keypoints: whether key points follow each box. Else, a sixth number is a detector's
            confidence. Both are passed over.
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
    yield Entry((path.stem,), boxes, fractions=True)


# By format: the ending of its files, and what gives the images of one.
READERS: dict[str, tuple[str, Callable[..., Iterator[Entry]]]] = {
    "voc": (".xml", read_voc),
    "labelme": (".json", read_labelme),
    "cvat": (".xml", read_cvat),
    "csv": (".csv", read_csv),
    "yolo": (".txt", read_yolo),
}


def read_text(path: Path) -> str:
    """The content of a file in UTF-8, with or without a byte-order mark.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no text in UTF-8: {error}") from error


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
    return list(csv.reader(lines, delimiter=max(",;\t", key=lines[0].count) if lines else ","))


def _csv_columns(rows: list[list[str]]) -> dict[str, int]:
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


def _is_true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true")


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


def _hull(where: str, name: Any, points: Any) -> Box:
    try:
        x, y = zip(*((float(x), float(y)) for x, y in points), strict=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: has no points of two numbers each: correct it") from error
    return _box(where, name, (min(x), min(y), max(x), max(y)))


def _turned(where: str, box: Box, degrees: str) -> Box:
    """The box around one that is turned around its centre."""
    (angle,) = _numbers(where, [degrees], 1)
    left, top, right, bottom = box.ltrb
    turn, centre = cmath.rect(1, math.radians(angle)), complex(left + right, top + bottom) / 2
    corners = [complex(x, y) for x in (left, right) for y in (top, bottom)]
    turned = [(corner - centre) * turn + centre for corner in corners] if angle else corners
    return _hull(where, box.name, [(corner.real, corner.imag) for corner in turned])
