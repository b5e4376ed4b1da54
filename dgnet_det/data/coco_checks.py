"""Checks of a COCO JSON file's content: ids, images, categories, boxes, masks and keypoints. No
image is opened."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from pydantic import BaseModel

from dgnet_det.data import coco
from dgnet_det.data.coco import IMPORT_MENDS
from dgnet_det.data.findings import Findings
from dgnet_det.errors import UserError

# Pixels by which a box may reach over its image's edge, as labelling tools round.
EDGE_TOLERANCE = 1.0
# As fractions of the image, boxes end at 1, or a little beyond by rounding.
FRACTION_LIMIT = 1.01
# Share of boxes that must reach over their image before another box format is thought of.
OVERREACHING_SHARE = 0.1


class Content(NamedTuple):
    """The sound content of a file: entries of 'images' by id, names of categories by id, in the
    order of a model's outputs, and entries of 'annotations'."""

    json_file: str
    image_root: str
    images: dict[int, dict[str, Any]]
    names: dict[int, str]
    annotations: list[dict[str, Any]]

    def paths(self) -> set[str]:
        """Where the images are, as absolute paths."""
        names = (image["file_name"] for image in self.images.values())
        return {os.path.abspath(os.path.join(self.image_root, name)) for name in names}

    def usable(self) -> "Content":
        """The content without crowds, which training and evaluation leave out."""
        return self._replace(annotations=[a for a in self.annotations if not a.get("iscrowd")])

    def boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """The boxes, [K, 4] x, y, width and height, and the width and height of each one's image,
        [K, 2]; pixels."""
        images = [self.images[a["image_id"]] for a in self.annotations]
        sizes = [(image["width"], image["height"]) for image in images]
        boxes = [a["bbox"] for a in self.annotations]
        return np.array(boxes, float).reshape(-1, 4), np.array(sizes, float).reshape(-1, 2)

    def class_and_image(self) -> list[tuple[str, int]]:
        """The name of the class and the id of the image of each annotation."""
        return [(self.names[a["category_id"]], a["image_id"]) for a in self.annotations]


def check_coco(
    cfg: CfgNode,
    json_file: str,
    image_root: str,
    findings: Findings,
    trained: bool,
    evaluated: bool,
    missing: str = "",
) -> Content:
    """Check the content of a COCO JSON file, for what it will be used for, by a model that may want
    masks or keypoints.

    Raises:
        UserError: as :func:`read_coco`; the file or the image folder is not there, of which
            ``missing`` says more.
    """
    if not PathManager.isfile(json_file):
        raise UserError(f"{json_file}: no such annotation file{missing}")
    if not PathManager.isdir(image_root):
        raise UserError(f"{image_root}: no such image folder{missing}")
    lists = coco.read_coco(json_file)
    models = [coco.annotation_form(cfg, evaluated, crowd) for crowd in (False, True)]
    images = _by_id("image", lists["images"], [coco.IMAGE] * 2, findings)
    categories = _by_id("category", lists["categories"], [coco.CATEGORY] * 2, findings)
    entries = [entry for entry in lists["annotations"] if isinstance(entry, dict)]
    used = {entry.get("category_id") for entry in entries}
    roots = coco.root_categories(list(categories.values()), used)
    _check_names(images, [c for c in categories.values() if c not in roots], findings)
    for root in roots:
        problem = (
            f"category {root['name']!r}, id {root['id']}, is the supercategory of others, without"
            " a box, as Roboflow writes it: it becomes a class of the model;"
            f" {IMPORT_MENDS} leaves it out"
        )
        findings.warning("root-category", problem, root["name"])
    if cfg.MODEL.KEYPOINT_ON:
        named = next((c["keypoints"] for c in categories.values() if c.get("keypoints")), ())
        if alone := coco.keypoint_pairs(list(map(str, named)))[1]:
            findings.warning("keypoint-sides", coco.ALONE.format(", ".join(alone)))
    if trained and not lists["annotations"]:
        findings.error("no-annotations", "no annotations to train on")
    listed = {
        key: {str(entry.get("id")) for entry in lists[key] if isinstance(entry, dict)}
        for key in ("images", "categories")
    }
    annotations = []
    for identity, annotation in _by_id(
        "annotation", lists["annotations"], models, findings
    ).items():
        for key, group in (("image_id", "images"), ("category_id", "categories")):
            if str(annotation[key]) not in listed[group]:
                problem = f"{key} {annotation[key]} is not in {group!r}"
                findings.error(f"unknown-{key}", problem, identity, noun="annotation")
        # What is wrong with an image or a category that is listed has been told.
        if annotation["image_id"] not in images or annotation["category_id"] not in categories:
            continue
        annotations.append(annotation)
        _check_mask(cfg, annotation, images[annotation["image_id"]], trained, findings)
        if (degrees := coco.rotation(annotation)) % 180:
            problem = f"its bbox is to be turned by its rotation of {degrees:g}°"
            problem += f": {IMPORT_MENDS} has the upright box around it"
            findings.error("bbox-rotation", problem, identity, noun="annotation")
    names = {identity: categories[identity]["name"] for identity in sorted(categories)}
    content = Content(json_file, image_root, images, names, annotations)
    if annotations:
        _check_boxes(content, findings)
        _check_use(cfg, content, findings, trained)
    return content


def compare_categories(train: Content, val: Content, findings: Findings) -> None:
    """Check that the validation set, whose file is that of ``findings``, has the classes of the
    training set in their order."""
    pairs = zip_longest(train.names.values(), val.names.values(), fillvalue="missing")
    for number, (ours, theirs) in enumerate(pairs, 1):
        if ours != theirs:
            problem = (
                f"not the categories of {train.json_file}: class {number} by id is {theirs},"
                f" there {ours}: give both one list"
            )
            findings.error("categories-differ", problem, theirs)


def _by_id(
    noun: str, entries: list[Any], models: Sequence[type[BaseModel]], findings: Findings
) -> dict[int, dict[str, Any]]:
    """The sound entries of a list, by id: those that fit the first of ``models``, or the second
    where they are crowds."""
    sound: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        known = entry if isinstance(entry, dict) else {}
        key = next((key for key in ("file_name", "name", "id") if key in known), "")
        name = known.get(key, f"number {number}")
        if problem := coco.form_problem(models[known.get("iscrowd") == 1], entry):
            findings.error(f"{noun}-{problem[0]}", problem[1], name, noun=noun)
            continue
        # Detectron2 refuses these too, but for the old COCO minival, which is known to have some.
        if entry["id"] in sound and "minival" not in findings.file:
            twice = f"another one has id {entry['id']} too"
            twice += f": {IMPORT_MENDS} has new ids" if noun == "annotation" else ""
            findings.error(f"duplicate-{noun}-id", twice, name, noun=noun)
        sound[entry["id"]] = entry
    return sound


def _check_names(
    images: dict[int, dict[str, Any]], categories: list[dict[str, Any]], findings: Findings
) -> None:
    """Check names of images' files and of categories."""
    for name, count in Counter(image["file_name"] for image in images.values()).items():
        if count > 1:
            findings.warning("duplicate-file-name", f"{name} is listed twice: under one id", name)
        if os.path.isabs(name):
            findings.warning("absolute-file-name", f"{name} is absolute: make it relative", name)
    for name, count in Counter(category["name"] for category in categories).items():
        if count > 1:
            findings.error("category-names", f"two categories are called {name!r}", name)


def _check_mask(
    cfg: CfgNode, entry: dict[str, Any], image: dict[str, Any], trained: bool, findings: Findings
) -> None:
    """Check an annotation's polygons for corners, and the size of its run-length encoding."""
    mask, size = entry.get("segmentation"), (image["width"], image["height"])
    if isinstance(mask, list):
        if coco.lacks_corners(entry):
            problem = "its 'segmentation' has no polygon of three corners: training leaves it out,"
            problem += f" box and all; {IMPORT_MENDS} has its box alone"
            findings.warning("mask-corners", problem, entry["id"], noun="annotation")
    elif mask is None or not cfg.MODEL.MASK_ON:
        return
    elif tuple(mask["size"][::-1]) != size or not fills(mask):
        problem = f"its mask does not fill the image of {size[0]} × {size[1]}"
        findings.error("mask", problem, entry["id"], noun="annotation")
    elif trained and cfg.INPUT.MASK_FORMAT == "polygon" and not entry.get("iscrowd"):
        problem = "its mask is no polygon: set INPUT.MASK_FORMAT bitmask"
        findings.error("mask-format", problem, entry["id"], noun="annotation")


def fills(mask: dict[str, Any]) -> bool:
    """Whether a mask's run-length encoding is of as many pixels as its size says. pycocotools
    decodes what is shorter to whatever lies in memory.

    COCO's text for counts has digits of base 32, the lowest first, from "P" on where more follow.
    The numbers are signed; from the third on, the last but one is to be added.
    """
    runs = mask["counts"]
    if isinstance(runs, str):
        numbers, runs = re.findall("[P-o]*[0-O]", runs), []
        if "".join(numbers) != mask["counts"]:
            return False
        for number in numbers:
            digits = [(ord(letter) - ord("0")) & 31 for letter in number]
            value = sum(digit << (5 * k) for k, digit in enumerate(digits))
            if digits[-1] & 16:
                value -= 1 << (5 * len(digits))
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return min(runs, default=-1) >= 0 and sum(runs) == mask["size"][0] * mask["size"][1]


def _check_boxes(content: Content, findings: Findings) -> None:
    """Check whether all boxes are of another format, then each box."""
    boxes, image_sizes = content.boxes()
    x, y, w, h = boxes.T
    width, height = (image_sizes + EDGE_TOLERANCE).T

    def in_image(left: Any, top: Any, right: Any, bottom: Any) -> np.ndarray:
        inside = (np.minimum(left, top) >= -EDGE_TOLERANCE) & (right <= width) & (bottom <= height)
        return inside & (left <= right) & (top <= bottom)

    if (abs(boxes) <= FRACTION_LIMIT).all() and (boxes % 1 != 0).any():
        problem = (
            f"all boxes are fractions of their image, such as {_text(boxes[0])}; COCO's are in"
            " pixels: multiply x and width by the image's width, y and height by its height"
        )
        findings.error("bbox-normalised", problem)
        return
    over = ~in_image(x, y, x + w, y + h)
    centred = in_image(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    for form, fitting in (
        ("[x1, y1, x2, y2]", in_image(x, y, w, h) & (x < w) & (y < h)),
        ("[centre x, centre y, width, height]", centred),
    ):
        if over.mean() > OVERREACHING_SHARE and fitting.all():
            problem = (
                f"{over.sum()} of {len(over)} boxes reach out of their image as [x, y, width,"
                f" height], such as {_text(boxes[over][0])}, and all fit as {form}: convert them"
            )
            findings.error("bbox-format", problem)
            return
    outside = (x + w < 0) | (y + h < 0) | (x > width - 1) | (y > height - 1)
    add, warn = findings.error, findings.warning
    told = np.zeros(len(over), bool)
    for kind, wrong, report, text in (
        ("bbox-negative", (w < 0) | (h < 0), add, "has a negative width or height"),
        ("bbox-outside", outside, add, "lies outside its image of {:g} × {:g}"),
        ("bbox-no-area", (w == 0) | (h == 0), warn, "has no area: training leaves it out"),
        ("bbox-over-edge", over, warn, "reaches over its image of {:g} × {:g}: training clips it"),
    ):
        for k in np.flatnonzero(wrong & ~told):
            problem = f"bbox {_text(boxes[k])} {text.format(*image_sizes[k])}"
            report(kind, problem, content.annotations[k]["id"], noun="annotation")
        told |= wrong


def _text(box: np.ndarray) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def _check_use(cfg: CfgNode, content: Content, findings: Findings, trained: bool) -> None:
    """Check what training or evaluation does with images and classes without boxes, and with boxes
    that are given twice."""
    usable = content.usable()
    if trained:
        sound = [a for a in usable.annotations if not coco.lacks_corners(a)]
        usable = usable._replace(annotations=sound)
    objects = usable.class_and_image()
    if trained and not objects:
        problem = "every object has iscrowd 1"
        if any(map(coco.lacks_corners, content.annotations)):
            problem += f" or lacks polygons of three corners: {IMPORT_MENDS} has boxes alone"
        findings.error("no-annotations", f"nothing to train on: {problem}")
    classes, images = ({each[k] for each in objects} for k in (0, 1))
    use = "each detection in it counts as false"
    if trained:
        use = "training leaves it out"
        if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            use = "training takes it as one without objects, by FILTER_EMPTY_ANNOTATIONS False"
    for identity, image in content.images.items():
        if objects and identity not in images:
            name = image["file_name"]
            findings.warning("empty-image", f"image {name} has no box: {use}", name)
    for name in content.names.values():
        if objects and name not in classes:
            findings.warning("empty-class", f"category {name!r} has no box", name)
    seen = set()
    for annotation in content.annotations:
        box = (annotation["image_id"], annotation["category_id"], *annotation["bbox"])
        if box in seen:
            problem = "its image has the same box of the same class twice"
            findings.warning("duplicate-box", problem, annotation["id"], noun="annotation")
        seen.add(box)
