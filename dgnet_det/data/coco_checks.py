"""Checks of a COCO JSON file's content: ids, images, categories and boxes. No image is opened."""

import json
import math
import os
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager

from dgnet_det.data.findings import Findings, first_few
from dgnet_det.errors import UserError

IMPORT = "convert it with tools/import_dataset.py"
# What other formats have at the top level, and who writes them.
FOREIGN_KEYS = {
    "shapes": "LabelMe's format: export COCO JSON from the labelling tool",
    "_via_img_metadata": "VIA's format: export COCO JSON from VIA",
    "names": "a YOLO data file's content: " + IMPORT,
}
# What evaluation reads, and would miss only after training.
EVALUATION_KEYS = {
    "area": "evaluation needs it: write the box's width × height, or the mask's area",
    "iscrowd": "evaluation needs it: write 0",
}
# Pixels by which a box may reach over its image's edge, as labelling tools round.
EDGE_TOLERANCE = 1.0
# As fractions of the image, boxes end at 1, or a little beyond by rounding.
FRACTION_LIMIT = 1.01
# Share of boxes that must reach over their image before another box format is thought of.
OVERREACHING_SHARE = 0.1


class Boxes(NamedTuple):
    """The boxes of a file whose annotation has all that it needs.

    Attributes:
        xywh: [K, 4] pixels.
        image_sizes: [K, 2] width and height of each box's image.
        annotation_ids: K ids.
        class_names: K names.
        image_ids: K ids.
        crowd: [K], whether the box is marked as a crowd: left out of training and evaluation.
    """

    xywh: np.ndarray
    image_sizes: np.ndarray
    annotation_ids: list[Any]
    class_names: list[str]
    image_ids: list[Any]
    crowd: np.ndarray


class Content(NamedTuple):
    """What is sound of a file: the entries of 'images' by id, and the boxes."""

    images: dict[Any, dict[str, Any]]
    boxes: Boxes


def read_coco(path: str) -> dict[str, Any]:
    """The content of a COCO JSON file, which has images and categories.

    Raises:
        UserError: the file is not there, is no JSON, or is not in COCO format.
    """
    try:
        with PathManager.open(path) as file:
            text = file.read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such annotation file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no valid JSON: {' '.join(str(error).split())}") from error
    try:
        coco = json.loads(text)
    except ValueError as error:
        hint = f": it is XML: {IMPORT}" if text.lstrip().startswith("<") else ""
        words = text.split("\n", 1)[0].split()
        if len(words) == 5 and words[0].isdigit():
            hint = f": it looks like a YOLO label file: {IMPORT}"
        raise UserError(f"{path}: no valid JSON{hint or f': {error}'}") from error
    if isinstance(coco, list):
        scored = bool(coco) and isinstance(coco[0], dict) and "score" in coco[0]
        what = "detections, which have scores" if scored else "a list"
        raise UserError(
            f"{path}: not in COCO format: the top level is no object but {what}: give the file"
            " that has 'images', 'annotations' and 'categories'"
        )
    if not isinstance(coco, dict):
        raise UserError(f"{path}: not in COCO format: the top level is no object")
    for key in ("images", "categories"):
        if not isinstance(coco.get(key), list) or not coco[key]:
            foreign = next((hint for k, hint in FOREIGN_KEYS.items() if k in coco), None)
            reason = f"it is {foreign}" if foreign else f"no list {key!r}, or an empty one"
            raise UserError(f"{path}: not in COCO format: {reason}")
    if not isinstance(coco.get("annotations", []), list):
        raise UserError(f"{path}: not in COCO format: 'annotations' is no list")
    for key in ("images", "categories", "annotations"):
        if not all(isinstance(entry, dict) for entry in coco.get(key, ())):
            raise UserError(f"{path}: not in COCO format: an entry of {key!r} is no object")
    return coco


def check_coco(
    path: str, coco: dict[str, Any], findings: Findings, *, trained: bool, evaluated: bool
) -> Content:
    """Check the content of a COCO JSON file.

    Args:
        path: of the file, for messages.
        coco: as :func:`read_coco` returns it.
        findings: what is found is added to these.
        trained, evaluated: what the file will be used for.

    Returns:
        What is sound.
    """
    images = _check_images(path, coco["images"], findings)
    names = _check_categories(path, coco["categories"], findings)
    boxes = _check_annotations(path, coco, images, names, findings, trained, evaluated)
    if len(boxes.xywh):
        _check_boxes(path, boxes, findings)
    _check_use(path, images, boxes, names, findings, trained)
    return Content(images, boxes)


def category_names(coco: dict[str, Any]) -> list[str]:
    """The names of the categories in the order of their ids, which is that of the classes."""
    return [c["name"] for c in sorted(coco["categories"], key=lambda c: c["id"])]


def compare_categories(
    train_path: str, train: list[str], val_path: str, val: list[str], findings: Findings
) -> None:
    """Check that two files have the same classes in the same order.

    Args:
        train_path, val_path: the files, for messages.
        train, val: their :func:`category_names`.
        findings: what is found is added to these.
    """
    if train == val:
        return
    only = [
        f"{first_few(sorted(set(a) - set(b)))} only in {path}"
        for path, a, b in ((train_path, train, val), (val_path, val, train))
        if set(a) - set(b)
    ]
    pairs = zip(train, val, strict=False)
    first = next((k for k, pair in enumerate(pairs) if len(set(pair)) > 1), 0)
    problem = "; ".join(only) or f"class {first + 1} by id is {val[first]!r}, not {train[first]!r}"
    findings.error(
        "categories-differ",
        val_path,
        f"not the categories of {train_path}: {problem}: give both files one list of categories",
    )


def size_of(image: dict[str, Any]) -> tuple[float, float]:
    """Width and height of an entry of 'images', pixels."""
    return image["width"], image["height"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_images(
    path: str, images: list[dict[str, Any]], findings: Findings
) -> dict[Any, dict[str, Any]]:
    """Check the entries of 'images'; those that are sound, by id."""
    sound: dict[Any, dict[str, Any]] = {}
    files: set[str] = set()
    for k, image in enumerate(images):
        missing = [key for key in ("id", "file_name", "width", "height") if key not in image]
        name = image.get("file_name", image.get("id", f"number {k + 1}"))
        if missing:
            findings.error("image-keys", path, f"image {name} has no {missing[0]!r}", name)
            continue
        identity, size = image["id"], (image["width"], image["height"])
        if not isinstance(identity, (int, str)) or not isinstance(name, str):
            problem = f"image {name}: its id or file_name is {identity!r} or {name!r}"
            findings.error("image-keys", path, problem + ": use a number and a text", name)
            continue
        if not all(_is_number(n) and n > 0 and n == int(n) for n in size):
            problem = f"image {name}: size {size[0]!r} × {size[1]!r} is no whole number of pixels"
            findings.error("image-size-value", path, problem, name)
            continue
        if identity in sound:
            problem = f"two images share one id, {identity!r}: number the images"
            findings.error("duplicate-image-id", path, problem, name)
        if name in files:
            problem = f"{name} is listed twice: put its annotations under one image id"
            findings.warning("duplicate-file-name", path, problem, name)
        if os.path.isabs(name):
            problem = f"file_name {name} is absolute: only this machine finds it; make it relative"
            findings.warning("absolute-file-name", path, problem, name)
        files.add(name)
        sound[identity] = image
    return sound


def _check_categories(
    path: str, categories: list[dict[str, Any]], findings: Findings
) -> dict[int, str]:
    """Check the entries of 'categories'; the names by id."""
    names: dict[int, str] = {}
    for category in categories:
        identity, name = category.get("id"), category.get("name")
        if not isinstance(identity, int) or not isinstance(name, str) or not name.strip():
            problem = f"category {category!r}: give each a number 'id' and a 'name'"
            findings.error("category-keys", path, problem, name)
            continue
        if identity in names:
            problem = f"categories {names[identity]!r} and {name!r} share one id, {identity}"
            findings.error("duplicate-category-id", path, problem, name)
        elif name in names.values():
            problem = f"two categories have the name {name!r}: merge them or rename one"
            findings.error("duplicate-category-name", path, problem, name)
        names[identity] = name
    return names


def _check_annotations(
    path: str,
    coco: dict[str, Any],
    images: dict[Any, dict[str, Any]],
    names: dict[int, str],
    findings: Findings,
    trained: bool,
    evaluated: bool,
) -> Boxes:
    annotations = coco.get("annotations", [])
    if trained and not annotations:
        findings.error("no-annotations", path, "no annotations to train on")
    required = ["id", "image_id", "category_id", "bbox", *(EVALUATION_KEYS if evaluated else ())]
    # What refers to an entry that was told of above is passed over.
    unsound_images = {str(i.get("id")) for i in coco["images"]} - set(map(str, images))
    unsound_categories = {str(c.get("id")) for c in coco["categories"]} - set(map(str, names))
    ids: set[Any] = set()
    kept = []
    for annotation in annotations:
        if unsound_images and str(annotation.get("image_id")) in unsound_images:
            continue
        if unsound_categories and str(annotation.get("category_id")) in unsound_categories:
            continue
        identity = annotation.get("id")
        problem = _problem(annotation, required, images, names)
        if problem is not None:
            findings.error(problem[0], path, f"annotation {identity}: {problem[1]}", identity)
            continue
        # Detectron2 refuses these too, but for the old COCO minival, which is known to have some.
        if identity in ids and "minival" not in path:
            problem_text = f"two annotations share one id, {identity}: number the annotations"
            findings.error("duplicate-annotation-id", path, problem_text, identity)
        ids.add(identity)
        kept.append(annotation)
    if 0 in ids and evaluated:
        problem_text = (
            "annotation id 0: COCO's evaluation takes a detection that matches it for a false one;"
            " number the annotations from 1"
        )
        findings.warning("annotation-id-0", path, problem_text, 0)
    return Boxes(
        np.array([a["bbox"] for a in kept], float).reshape(-1, 4),
        np.array([size_of(images[a["image_id"]]) for a in kept], float).reshape(-1, 2),
        [a["id"] for a in kept],
        [names[a["category_id"]] for a in kept],
        [a["image_id"] for a in kept],
        np.array([bool(a.get("iscrowd", 0)) for a in kept], bool),
    )


def _problem(
    annotation: dict[str, Any],
    required: list[str],
    images: dict[Any, dict[str, Any]],
    names: dict[int, str],
) -> tuple[str, str] | None:
    """The kind and text of what makes an annotation unusable."""
    for key in required:
        if key not in annotation:
            use = f": {EVALUATION_KEYS[key]}" if key in EVALUATION_KEYS else ""
            return "annotation-keys", f"no {key!r}{use}"
    image, category, box = (annotation[key] for key in ("image_id", "category_id", "bbox"))
    if not isinstance(annotation["id"], int):
        return "annotation-keys", f"its id is {annotation['id']!r}: evaluation needs whole numbers"
    if not isinstance(image, (int, str)) or image not in images:
        other = int(image) if isinstance(image, str) and image.isdigit() else str(image)
        hint = f", which has {other!r}: write both as numbers" if other in images else ""
        return "unknown-image", f"image_id {image!r} is not in 'images'{hint}"
    if not isinstance(category, int) or category not in names:
        return "unknown-category", f"category_id {category!r} is not in 'categories'"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        text = f"bbox {box!r} is no [x, y, width, height] of four finite numbers"
        return "bbox-value", text
    if not _is_number(annotation.get("area", 0)):
        return "area-value", f"area {annotation['area']!r} is no number: give the box's area"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return "iscrowd-value", f"iscrowd {annotation['iscrowd']!r} is neither 0 nor 1"
    if annotation.get("ignore", 0) != 0:
        text = f"'ignore' is {annotation['ignore']!r}: Detectron2 refuses it; set iscrowd to 1"
        return "ignore", text
    return None


def _check_boxes(path: str, boxes: Boxes, findings: Findings) -> None:
    """Check the numbers: first for another format altogether, then each box."""
    x, y, w, h = boxes.xywh.T
    width, height = (boxes.image_sizes + EDGE_TOLERANCE).T

    def in_image(left: Any, top: Any, right: Any, bottom: Any) -> np.ndarray:
        inside = (np.minimum(left, top) >= -EDGE_TOLERANCE) & (right <= width) & (bottom <= height)
        return inside & (left <= right) & (top <= bottom)

    fractions = abs(boxes.xywh) <= FRACTION_LIMIT
    if fractions.all() and (boxes.xywh % 1 != 0).any():
        problem = (
            f"all boxes are fractions of their image, such as {_text(boxes.xywh[0])}; COCO's are"
            " in pixels: multiply x and width by the image's width, y and height by its height"
        )
        findings.error("bbox-normalised", path, problem)
        return
    over = ~in_image(x, y, x + w, y + h)
    if over.mean() > OVERREACHING_SHARE:
        others = {
            "bbox-corners": ("[x1, y1, x2, y2]", in_image(x, y, w, h) & (x < w) & (y < h)),
            "bbox-centre": (
                "[centre x, centre y, width, height]",
                in_image(x - w / 2, y - h / 2, x + w / 2, y + h / 2),
            ),
        }
        for kind, (name, fits) in others.items():
            if fits.all():
                problem = (
                    f"{over.sum()} of {len(over)} boxes reach out of their image as [x, y, width,"
                    f" height], such as {_text(boxes.xywh[over][0])}, and all fit as {name}:"
                    " convert them"
                )
                findings.error(kind, path, problem)
                return
    negative = (w < 0) | (h < 0)
    outside = (x + w < 0) | (y + h < 0) | (x > width - 1) | (y > height - 1)
    no_area = (w == 0) | (h == 0)
    add, warn = findings.error, findings.warning
    for kind, wrong, report, text in (
        ("bbox-negative", negative, add, "has a negative width or height"),
        ("bbox-outside", outside & ~negative, add, "lies outside its image of {} × {}"),
        ("bbox-no-area", no_area & ~outside, warn, "has no area: training leaves it out"),
        (
            "bbox-over-edge",
            over & ~negative & ~outside,
            warn,
            "reaches over the edge of its image of {} × {}: training clips it",
        ),
    ):
        for k in np.flatnonzero(wrong):
            identity, size = boxes.annotation_ids[k], map(int, boxes.image_sizes[k])
            problem = f"bbox {_text(boxes.xywh[k])} {text.format(*size)}"
            report(kind, path, f"annotation {identity}: {problem}", identity)


def _text(box: np.ndarray) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def _check_use(
    path: str,
    images: dict[Any, dict[str, Any]],
    boxes: Boxes,
    names: dict[int, str],
    findings: Findings,
    trained: bool,
) -> None:
    """Check what training would make of it: images and classes without boxes, boxes given twice."""
    usable = ~boxes.crowd
    if trained and len(usable) and not usable.any():
        findings.error("no-annotations", path, "every box has iscrowd 1: nothing to train on")
    with_boxes = {boxes.image_ids[k] for k in np.flatnonzero(usable)}
    for identity, image in images.items():
        if with_boxes and identity not in with_boxes:
            name = image["file_name"]
            use = "training leaves it out" if trained else "each detection in it counts as false"
            findings.warning("empty-image", path, f"image {name} has no box: {use}", name)
    counts = Counter(boxes.class_names[k] for k in np.flatnonzero(usable))
    for name in names.values():
        if counts and not counts[name]:
            findings.warning("empty-class", path, f"category {name!r} has no box", name)
    seen = set()
    for k, box in enumerate(boxes.xywh.tolist()):
        key = (boxes.image_ids[k], boxes.class_names[k], *box)
        if key in seen:
            identity = boxes.annotation_ids[k]
            problem = f"annotation {identity}: its image has the same box of the same class twice"
            findings.warning("duplicate-box", path, problem, identity)
        seen.add(key)
