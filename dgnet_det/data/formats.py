"""Readers of labelling tools' files: Pascal VOC, LabelMe, CVAT, CSV, YOLO and COCO.

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

from dgnet_det.data import shapes
from dgnet_det.data.coco import is_mask, read_coco, rotation
from dgnet_det.data.coco_checks import FRACTION_LIMIT, fills
from dgnet_det.errors import UserError, first_few

SIDES = ("xmin", "ymin", "xmax", "ymax")
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
HEADERLESS = ("image", *SIDES, "class")
# The columns that give a box, the best first. Of one column for all, x, y, width and height.
CSV_BOXES = (SIDES, ("xmin", "ymin", "w", "h"), ("bbox",))
# Functions that give the box of a shape: from LabelMe's points, and from CVAT's attributes.
LABELME_SHAPES = {
    "circle": shapes.around_circle,
    **dict.fromkeys(("rectangle", "polygon", "mask", "rotation", "quadrilateral"), shapes.around),
}
CVAT_SHAPES: dict[str, Callable[[dict[str, str]], Iterator[float]]] = {
    "box": lambda a: shapes.turned(
        map(a.get, ("xtl", "ytl", "xbr", "ybr")), a.get("rotation") or 0
    ),
    "polygon": lambda a: shapes.around(p.split(",") for p in a.get("points", "").split(";")),
    "mask": lambda a: shapes.beside_corner(map(a.get, ("left", "top", "width", "height"))),
    "ellipse": lambda a: shapes.around_ellipse(
        map(a.get, ("cx", "cy", "rx", "ry")), a.get("rotation") or 0
    ),
}


class Malformed(ValueError):
    """A mistake in a file, whose name :func:`read_annotations` adds."""


class LabelledObject(NamedTuple):
    """An object: its class, its left, top, right and bottom as the file counts them, whether
    training and evaluation leave it out (*difficult*, or a group), and COCO's fields."""

    name: str
    ltrb: tuple[float, ...]
    crowd: bool = False
    coco: dict[str, Any] = {}  # noqa: RUF012


class Labels(NamedTuple):
    """The labels of one image, as a file states them."""

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
                sides = shapes.turned(sides, attribute.findtext("value"))
        crowd = _is_true(node.findtext("difficult"))
        objects.append(make_object(f"object {number}", node.findtext("name"), sides, crowd))
    size = _size(root.findtext("size/width"), root.findtext("size/height"))
    yield Labels((path.stem, root.findtext("filename", "")), objects, size=size)


def _read_labelme(path: Path) -> Iterator[Labels]:
    """Read shapes. Those of one label and ``group_id`` are the parts of one object."""
    content = json.loads(read_text(path))
    found = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(shape, dict) for shape in found):
        raise Malformed("it has no 'shapes'")
    objects: dict[Any, LabelledObject] = {}
    kinds = [shape.get("shape_type") or "polygon" for shape in found]
    notes, parts = _left_out(kinds, LABELME_SHAPES), 0
    for number, (kind, shape) in enumerate(zip(kinds, found, strict=True), 1):
        if kind not in LABELME_SHAPES:
            continue
        sides = LABELME_SHAPES[kind](shape.get("points"))
        part, group = (
            make_object(f"shape {number}", shape.get("label"), sides),
            shape.get("group_id"),
        )
        key = number if group is None else (part.name, str(group))
        if key in objects:
            parts += 1
            corners = [each.ltrb[k : k + 2] for each in (objects[key], part) for k in (0, 2)]
            part = part._replace(ltrb=tuple(shapes.around(corners)))
        objects[key] = part
    if parts:
        notes["group"] = f"{parts} shapes are joined to others of their label and group_id"
    names = (path.stem, str(content.get("imagePath") or ""))
    size = _size(content.get("imageWidth"), content.get("imageHeight"))
    yield Labels(names, list(objects.values()), size=size, notes=notes)


def _read_cvat(path: Path) -> Iterator[Labels]:
    root = _read_xml(path, "annotations")
    if root.find("track") is not None:
        raise Malformed("it is in the format CVAT for video: export CVAT for images")
    for image in root.iter("image"):
        name = image.get("name", "")
        objects = [
            make_object(
                f"image {name}: object {number}",
                node.get("label"),
                CVAT_SHAPES[node.tag](node.attrib),
            )
            for number, node in enumerate(image, 1)
            if node.tag in CVAT_SHAPES
        ]
        notes = _left_out((node.tag for node in image), {*CVAT_SHAPES, "tag"})  # of the whole image
        size = _size(image.get("width"), image.get("height"))
        yield Labels((name,), objects, split=image.get("subset", ""), size=size, notes=notes)


def _read_csv(path: Path) -> Iterator[Labels]:
    """Read a row for each box, in columns that have names of ``CSV_COLUMNS``. Where all coordinates
    of a file are at most 1, they are fractions of the image, as Open Images has them. A row without
    coordinates is an image without objects."""
    rows, columns, box = _csv_table(path)
    if box is None:
        missing = [meaning for meaning in HEADERLESS if meaning not in columns]
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
        values: list[Any] = [cells.get(meaning) for meaning in box]
        if any(values):
            if box == ("bbox",):
                values = re.findall(r"[^\s,;\[\]()]+", values[0])
            sides = values if box == SIDES else shapes.beside_corner(values)
            crowd = _is_true(cells.get("crowd"))
            found = make_object(f"line {number}", cells.get("class"), sides, crowd)
            labels.objects.append(found)
    values = [v for labels in images.values() for each in labels.objects for v in each.ltrb]
    fractions = max(values, default=math.inf) <= FRACTION_LIMIT
    for labels in images.values():
        yield labels._replace(fractions=fractions)


def has_box_columns(path: Path) -> bool:
    """Whether a CSV file has all columns of boxes."""
    return _csv_table(path)[2] is not None


def _csv_table(path: Path) -> tuple[list[list[str]], dict[str, int], tuple[str, ...] | None]:
    """The rows of a CSV file, the place of each column by what is in it, and the columns that give
    a box, or None where one of them, the image or the class is missing. ``width`` and ``height``
    are the image's where other columns give the box."""
    lines = read_text(path).splitlines() or [""]
    rows = list(csv.reader(lines, delimiter=max(",;\t", key=lines[0].count)))
    header = [name.strip().lower() for name in rows[0]]
    columns = {
        meaning: header.index(alias)
        for meaning, aliases in CSV_COLUMNS.items()
        for alias in reversed(aliases)
        if alias in header
    }
    if not columns and len(header) == len(HEADERLESS):
        columns = {meaning: k for k, meaning in enumerate(HEADERLESS)}
    given = {"xmax", "w", "bbox"} & columns.keys()
    for name, meaning in (("width", "w"), ("height", "h")):
        if name in header:
            columns.setdefault(f"image_{name}" if given else meaning, header.index(name))
    needed = (box for box in CSV_BOXES if columns.keys() >= {"image", "class", *box})
    return rows, columns, next(needed, None)


def _read_yolo(path: Path, classes: Sequence[str], keypoints: bool = False) -> Iterator[Labels]:
    """Read a line for each object: the number of its class from 0, then the centre's x and y, width
    and height as fractions of the image, or a polygon. Key points behind a box and a detector's
    confidence, a sixth number, are passed over. Numbers may be decimals, such as 1.0, and have
    commas between them."""
    objects = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        label, *values = re.split(r"[\s,]+", line.strip().strip(","))
        if not label:
            continue
        where = f"line {number}, {line.strip()[:60]!r}"
        try:
            name = classes[range(len(classes)).index(float(label))]  # type: ignore[arg-type]
        except ValueError as error:
            count = len(classes)
            problem = f"there are {count} classes, with the whole numbers from 0"
            raise Malformed(f"{where}: {problem}") from error
        if len(values) > 5 and not keypoints:
            sides = shapes.around(zip(values[::2], values[1::2], strict=True))
        else:
            sides = shapes.around_centre(values[:4])
        found = make_object(where, name, sides)
        if max(map(abs, found.ltrb)) > 1.5 * FRACTION_LIMIT:  # half of the largest box outside
            raise Malformed(f"{where}: not fractions of the image: divide by its width and height")
        objects.append(found)
    yield Labels((path.stem,), objects, fractions=True)


def _read_coco(path: Path) -> Iterator[Labels]:
    """Read annotations. Boxes with a rotation are turned; others keep masks and keypoints."""
    coco = read_coco(str(path))
    names: dict[str, Any] = {}
    for number, category in enumerate(coco["categories"], 1):
        where = f"category {number}"
        names[coco_id(category, "id", where)] = _field(category, "name", where)
    images: dict[str, Labels] = {}
    for number, image in enumerate(coco["images"], 1):
        where = f"image {number}"
        identity = coco_id(image, "id", where)
        if identity in images:
            raise Malformed(f"two images have the id {identity}")
        file = re.sub(r"\?.*", "", str(_field(image, "file_name", where)))  # of a link
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
        found = make_object(where, names[category_id], sides, crowd)
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
    sides = shapes.beside_corner(kept.get("bbox", ()))
    if "bbox" not in kept and isinstance(kept.get("segmentation"), list):
        sides = shapes.around(p for m in mask for p in zip(m[::2], m[1::2], strict=False))
    elif any(isinstance(value, str) for value in kept.get("bbox") or ()):
        del kept["bbox"]  # numbers in quotes
    if (degrees := rotation(annotation)) % 180:
        notes["turned"] = "a box with a rotation becomes the upright box around it"
        return shapes.turned(sides, degrees), {}
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
    """Read the labels of a file's images, in a format of ``READERS``. ``options`` are for YOLO: the
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


def _left_out(kinds: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """A note on the kinds of shapes that are not taken, if there are any."""
    others = [kind for kind in kinds if kind not in taken]
    return {"shape": f"has {first_few(others)}: only boxes and areas are taken"} if others else {}


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


def make_object(where: str, name: Any, sides: Iterable[Any], crowd: bool = False) -> LabelledObject:
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
