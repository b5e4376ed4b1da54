"""What the annotation files of labelling tools say: Pascal VOC, LabelMe, CVAT, CSV and YOLO.

Of a polygon and of a turned box, the upright box around it is taken.
"""

import cmath
import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
SIDES = ("xmin", "ymin", "xmax", "ymax")
HEADERLESS = ("image", *SIDES, "class")


class Box(NamedTuple):
    """An object: its class, its left, top, right and bottom as the file counts them, and whether
    training and evaluation leave it out, as it is *difficult* or a group."""

    name: str
    ltrb: tuple[float, ...]
    crowd: bool = False


class Entry(NamedTuple):
    """What a file says of one image."""

    names: tuple[str, ...]  # by which the image is found, the best first
    boxes: list[Box]
    fractions: bool = False  # whether boxes are fractions of the image, not pixels
    split: str = ""  # that the file puts the image in, if it does
    left_out: tuple[str, ...] = ()  # kinds of its shapes that are no boxes


def _read_voc(path: Path) -> Iterator[Entry]:
    root = _read_xml(path, "annotation")
    boxes = []
    for number, node in enumerate(root.findall("object"), 1):
        sides = (node.findtext(f"bndbox/{side}") for side in SIDES)
        crowd = _is_true(node.findtext("difficult"))
        boxes.append(_box(f"object {number}", node.findtext("name"), sides, crowd))
    yield Entry((path.stem, root.findtext("filename", "")), boxes)


def _read_labelme(path: Path) -> Iterator[Entry]:
    content = json.loads(read_text(path))
    if "shapes" not in content:
        raise ValueError("it has no 'shapes'")
    boxes, left_out = [], []
    for number, shape in enumerate(content["shapes"], 1):
        kind = shape.get("shape_type", "polygon")
        if kind in ("rectangle", "polygon", "mask"):
            sides = _around(shape.get("points"))
            boxes.append(_box(f"shape {number}", shape.get("label"), sides))
        else:
            left_out.append(kind)
    names = (path.stem, str(content.get("imagePath") or ""))
    yield Entry(names, boxes, left_out=tuple(left_out))


def _read_cvat(path: Path) -> Iterator[Entry]:
    root = _read_xml(path, "annotations")
    if root.find("track") is not None:
        raise ValueError("it is in the format CVAT for video: export CVAT for images")
    for image in root.iter("image"):
        boxes, left_out = [], []
        for number, node in enumerate(image, 1):
            where = f"image {image.get('name')}: object {number}"
            if node.tag == "box":
                sides: Iterable[Any] = map(node.get, ("xtl", "ytl", "xbr", "ybr"))
                if turn := node.get("rotation"):
                    sides = _turned(sides, turn)
                boxes.append(_box(where, node.get("label"), sides))
            elif node.tag == "polygon":
                points = (point.split(",") for point in node.get("points", "").split(";"))
                boxes.append(_box(where, node.get("label"), _around(points)))
            elif node.tag != "tag":  # of the whole image
                left_out.append(node.tag)
        split = image.get("subset", "")
        yield Entry((image.get("name", ""),), boxes, split=split, left_out=tuple(left_out))


def _read_csv(path: Path) -> Iterator[Entry]:
    """There is a row for each box, in columns that have names of ``CSV_COLUMNS``. Where all
    coordinates of a file are at most 1, they are fractions of the image, as Open Images has them. A
    row without coordinates is an image without objects."""
    rows = _csv_rows(path)
    columns = _csv_columns(rows)
    if not set(HEADERLESS) <= columns.keys():
        raise ValueError(f"its first line must name columns, such as {', '.join(HEADERLESS)}")
    images: dict[str, list[Box]] = {}
    for number, row in enumerate(rows, 1):
        cells = {meaning: row[k].strip() for meaning, k in columns.items() if k < len(row)}
        if not any(row) or (number == 1 and cells["xmin"].lower() in CSV_COLUMNS["xmin"]):
            continue
        if not cells.get("image"):
            raise ValueError(f"line {number}: names no image")
        boxes = images.setdefault(cells["image"], [])
        sides = [cells.get(side) for side in SIDES]
        if any(sides):
            crowd = _is_true(cells.get("crowd"))
            boxes.append(_box(f"line {number}", cells.get("class"), sides, crowd))
    values = [value for boxes in images.values() for box in boxes for value in box.ltrb]
    fractions = max(values, default=math.inf) <= FRACTION_LIMIT
    for name, boxes in images.items():
        yield Entry((name,), boxes, fractions)


def has_box_columns(path: Path) -> bool:
    """Whether a CSV file has all columns of boxes."""
    return set(HEADERLESS) <= _csv_columns(_csv_rows(path)).keys()


def _read_yolo(path: Path, classes: Sequence[str], keypoints: bool = False) -> Iterator[Entry]:
    """For each object there is a line with the number of its class from 0, then the centre's x and
    y, width and height as fractions of the image, or a polygon. Key points behind a box and a
    detector's confidence, a sixth number, are passed over."""
    boxes = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        label, *values = line.split() or [""]
        where = f"line {number}, {line.strip()[:60]!r}"
        if not label:
            continue
        if not label.isdecimal() or int(label) >= len(classes):
            raise ValueError(f"{where}: there are {len(classes)} classes, numbered from 0")
        if len(values) > 5 and not keypoints:
            sides = _around(zip(values[::2], values[1::2], strict=True))
        else:
            sides = _around_centre(values[:4])
        box = _box(where, classes[int(label)], sides)
        if max(map(abs, box.ltrb)) > 1.5 * FRACTION_LIMIT:  # half of the largest box outside
            raise ValueError(f"{where}: not fractions of the image: divide by its width and height")
        boxes.append(box)
    yield Entry((path.stem,), boxes, fractions=True)


# By format: the ending of its files, and what gives the images of one.
READERS: dict[str, tuple[str, Callable[..., Iterator[Entry]]]] = {
    "voc": (".xml", _read_voc),
    "labelme": (".json", _read_labelme),
    "cvat": (".xml", _read_cvat),
    "csv": (".csv", _read_csv),
    "yolo": (".txt", _read_yolo),
}


def read_annotations(layout: str, path: Path, **options: Any) -> list[Entry]:
    """What a file says of its images, in a format of ``READERS``. ``options`` are for YOLO: the
    names of the ``classes``, and whether there are ``keypoints``.

    Raises:
        UserError: it is of another format, or an object has no class or no box.
    """
    with reading(path, f"not read as {layout}"):
        return list(READERS[layout][1](path, **options))


def read_text(path: Path) -> str:
    """The content of a file in UTF-8, with or without a byte-order mark.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    with reading(path, "no text in UTF-8"):
        return path.read_text(encoding="utf-8-sig")


def _read_xml(path: Path, tag: str) -> ElementTree.Element:
    root = ElementTree.parse(path).getroot()
    if root.tag != tag:
        raise ValueError(f"it holds <{root.tag}>, not <{tag}>")
    return root


def _csv_rows(path: Path) -> list[list[str]]:
    lines = read_text(path).splitlines() or [""]
    return list(csv.reader(lines, delimiter=max(",;\t", key=lines[0].count)))


def _csv_columns(rows: list[list[str]]) -> dict[str, int]:
    header = [name.strip().lower() for name in rows[0]]
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


def _box(where: str, name: Any, sides: Iterable[Any], crowd: bool = False) -> Box:
    """An object. Its sides are numbers or texts, and may raise as they are computed."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: has no class: name it")
    try:
        left, top, right, bottom = ltrb = tuple(map(float, sides))
        sound = left <= right and top <= bottom and all(map(math.isfinite, ltrb))
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{where}: no box of numbers, left ≤ right, top ≤ bottom: correct it")
    return Box(name.strip(), ltrb, crowd)


def _around(points: Iterable[Any]) -> Iterator[float]:
    """The sides of the box around points."""
    x, y = zip(*(map(float, point) for point in points), strict=True)
    yield from (min(x), min(y), max(x), max(y))


def _around_centre(values: Iterable[Any]) -> Iterator[float]:
    """The sides of a box with a centre's x and y, a width and a height."""
    x, y, w, h = map(float, values)
    yield from (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def _turned(sides: Iterable[Any], degrees: str) -> Iterator[float]:
    """The sides of the box around one that is turned around its centre."""
    left, top, right, bottom = map(float, sides)
    turn = cmath.rect(1, math.radians(float(degrees)))
    centre = complex(left + right, top + bottom) / 2
    corners = [complex(x, y) for x in (left, right) for y in (top, bottom)]
    turned = [(corner - centre) * turn + centre for corner in corners]
    yield from _around((corner.real, corner.imag) for corner in turned)


@contextmanager
def reading(path: Path, problem: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {problem}: {reason}") from error
