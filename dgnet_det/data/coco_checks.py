"""Checks of a COCO JSON file's content: ids, images, categories, boxes, masks and keypoints. No
image is opened."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from pydantic import BaseModel

from dgnet_det.data.coco import (
    Category,
    Image,
    annotation_model,
    category_names,
    form_problem,
    read_coco,
    sound_polygons,
)
from dgnet_det.data.findings import Findings, first_few

# Pixels by which a box may reach over its image's edge, as labelling tools round.
EDGE_TOLERANCE = 1.0
# As fractions of the image, boxes end at 1, or a little beyond by rounding.
FRACTION_LIMIT = 1.01
# Share of boxes that must reach over their image before another box format is thought of.
OVERREACHING_SHARE = 0.1


class Content(NamedTuple):
    """What is sound of a file.

    Attributes:
        images: the entries of 'images' by id.
        xywh: the boxes, [K, 4] pixels.
        image_sizes: [K, 2] width and height of each box's image.
        annotation_ids, class_names, image_ids: K of each.
        crowd: [K], whether the box is marked as a crowd: left out of training and evaluation.
    """

    images: dict[int, dict[str, Any]]
    xywh: np.ndarray
    image_sizes: np.ndarray
    annotation_ids: list[int]
    class_names: list[str]
    image_ids: list[int]
    crowd: np.ndarray


def check_coco(cfg: CfgNode, findings: Findings, *, trained: bool, evaluated: bool) -> Content:
    """Check the content of a COCO JSON file.

    Args:
        cfg: the config, whose model may want masks or keypoints.
        findings: of the file; what is found is added.
        trained, evaluated: what the file will be used for.

    Returns:
        What is sound.

    Raises:
        UserError: as :func:`read_coco`.
    """
    coco = read_coco(findings.file)
    images = _check_images(coco, findings)
    names = _check_categories(coco, findings)
    if trained and not coco["annotations"]:
        findings.error("no-annotations", "no annotations to train on")
    models = [annotation_model(cfg, evaluated, crowd) for crowd in (False, True)]
    annotations = list(_check_annotations(coco, models, images, names, findings))
    for annotation in annotations:
        if cfg.MODEL.MASK_ON and "segmentation" in annotation:
            polygons = trained and cfg.INPUT.MASK_FORMAT == "polygon"
            _check_mask(annotation, images[annotation["image_id"]], polygons, findings)
    if evaluated and any(annotation["id"] == 0 for annotation in annotations):
        problem = "annotation id 0: COCO's evaluation counts what matches it as false: start from 1"
        findings.warning("annotation-id-0", problem, 0)
    sizes = [size_of(images[a["image_id"]]) for a in annotations]
    content = Content(
        images,
        np.array([a["bbox"] for a in annotations], float).reshape(-1, 4),
        np.array(sizes, float).reshape(-1, 2),
        [a["id"] for a in annotations],
        [names[a["category_id"]] for a in annotations],
        [a["image_id"] for a in annotations],
        np.array([a.get("iscrowd", 0) for a in annotations], bool),
    )
    if annotations:
        _check_boxes(content, findings)
        _check_use(content, names, findings, trained)
    return content


def compare_categories(train: str, findings: Findings) -> None:
    """Check that the file of ``findings`` has the classes of the file ``train`` in their order."""
    a, b = category_names(train), category_names(findings.file)
    if a != b:
        missing, new = sorted(set(a) - set(b)), sorted(set(b) - set(a))
        differences = [f"without {first_few(missing)}"] * bool(missing)
        differences += [f"with {first_few(new)}"] * bool(new)
        if not differences:
            k = next(k for k, (ours, theirs) in enumerate(zip(a, b, strict=True)) if ours != theirs)
            differences = [f"class {k + 1} by id is {b[k]!r}, not {a[k]!r}"]
        problem = f"not the categories of {train}: {' and '.join(differences)}: give both one list"
        findings.error("categories-differ", problem)


def size_of(image: dict[str, Any]) -> tuple[float, float]:
    """Width and height of an entry of 'images', pixels."""
    return image["width"], image["height"]


def _of_form(
    noun: str, entries: list[Any], model_of: Callable[[Any], type[BaseModel]], findings: Findings
) -> Iterator[dict[str, Any]]:
    """The entries of a list that are of their form."""
    for number, entry in enumerate(entries, 1):
        problem = form_problem(model_of(entry), entry)
        if problem is None:
            yield entry
            continue
        known = entry if isinstance(entry, dict) else {}
        key = next((key for key in ("file_name", "name", "id") if key in known), "")
        name = known.get(key, f"number {number}")
        findings.error(f"{noun}-{problem[0]}", f"{noun} {name}: {problem[1]}", name)


def _check_images(coco: dict[str, Any], findings: Findings) -> dict[int, dict[str, Any]]:
    """The sound entries of 'images', by id."""
    sound: dict[int, dict[str, Any]] = {}
    files: set[str] = set()
    for image in _of_form("image", coco["images"], lambda _: Image, findings):
        identity, name = image["id"], image["file_name"]
        if identity in sound:
            findings.error("duplicate-image-id", f"two images have id {identity}", name)
        if name in files:
            findings.warning("duplicate-file-name", f"{name} is listed twice: under one id", name)
        if os.path.isabs(name):
            findings.warning("absolute-file-name", f"{name} is absolute: make it relative", name)
        files.add(name)
        sound[identity] = image
    return sound


def _check_categories(coco: dict[str, Any], findings: Findings) -> dict[int, str]:
    """The names of the sound entries of 'categories', by id."""
    names: dict[int, str] = {}
    for category in _of_form("category", coco["categories"], lambda _: Category, findings):
        identity, name = category["id"], category["name"]
        if identity in names:
            findings.error("category-ids", f"two categories have id {identity}", name)
        elif name in names.values():
            findings.error("category-names", f"two categories are called {name!r}", name)
        names[identity] = name
    return names


def _check_annotations(
    coco: dict[str, Any],
    models: Sequence[type[BaseModel]],
    images: dict[int, dict[str, Any]],
    names: dict[int, str],
    findings: Findings,
) -> Iterator[dict[str, Any]]:
    """The entries of 'annotations' that have an id of their own and belong to a sound image and
    category. ``models`` are the forms of objects and of crowds."""

    def model_of(entry: Any) -> type[BaseModel]:
        return models[isinstance(entry, dict) and entry.get("iscrowd") == 1]

    listed = {
        group: {str(entry.get("id")) for entry in coco[group] if isinstance(entry, dict)}
        for group in ("images", "categories")
    }
    ids: set[int] = set()
    for annotation in _of_form("annotation", coco["annotations"], model_of, findings):
        identity, image, category = (annotation[k] for k in ("id", "image_id", "category_id"))
        for key, value, group in (
            ("image_id", image, "images"), ("category_id", category, "categories")
        ):  # fmt: skip
            if str(value) not in listed[group]:
                problem = f"annotation {identity}: {key} {value} is not in {group!r}"
                findings.error(f"unknown-{key}", problem, identity)
        if image not in images or category not in names:  # told of here or above
            continue
        # Detectron2 refuses these too, but for the old COCO minival, which is known to have some.
        if identity in ids and "minival" not in findings.file:
            findings.error(
                "duplicate-annotation-id", f"two annotations have id {identity}", identity
            )
        ids.add(identity)
        yield annotation


def _check_mask(
    annotation: dict[str, Any], image: dict[str, Any], polygons: bool, findings: Findings
) -> None:
    """Check what the form does not tell. ``polygons``: whether no other form can be learned."""
    identity, mask, size = annotation["id"], annotation["segmentation"], size_of(image)
    if isinstance(mask, list):
        if not sound_polygons(mask):
            problem = f"annotation {identity}: no polygon of three corners: training leaves it out"
            findings.warning("mask-corners", problem, identity)
    elif tuple(mask["size"][::-1]) != size or not fills(mask):
        problem = (
            f"annotation {identity}: its mask does not fill the image of {size[0]} × {size[1]}"
        )
        findings.error("mask", problem, identity)
    elif polygons and not annotation.get("iscrowd"):
        problem = f"annotation {identity}: its mask is no polygon: set INPUT.MASK_FORMAT bitmask"
        findings.error("mask-format", problem, identity)


def fills(mask: dict[str, Any]) -> bool:
    """Whether a mask's run-length encoding is of as many pixels as its size says. pycocotools
    decodes what is shorter to whatever lies in memory.

    COCO's text for counts has digits of base 32, the lowest first, each with a bit that says
    whether more follow. The numbers are signed; from the third on, the last but one is to be added.
    """
    runs: list[int] = [] if isinstance(mask["counts"], str) else mask["counts"]
    value = shift = 0
    for code in [ord(letter) - ord("0") for letter in mask["counts"]] if not runs else []:
        value |= (code & 31) << shift
        shift += 5
        if not 0 <= code < 64:
            return False
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return (
        shift == 0 and min(runs, default=-1) >= 0 and sum(runs) == mask["size"][0] * mask["size"][1]
    )


def _check_boxes(content: Content, findings: Findings) -> None:
    """Check the numbers: first for another format altogether, then each box."""
    x, y, w, h = content.xywh.T
    width, height = (content.image_sizes + EDGE_TOLERANCE).T

    def in_image(left: Any, top: Any, right: Any, bottom: Any) -> np.ndarray:
        inside = (np.minimum(left, top) >= -EDGE_TOLERANCE) & (right <= width) & (bottom <= height)
        return inside & (left <= right) & (top <= bottom)

    if (abs(content.xywh) <= FRACTION_LIMIT).all() and (content.xywh % 1 != 0).any():
        problem = (
            f"all boxes are fractions of their image, such as {_text(content.xywh[0])}; COCO's are"
            " in pixels: multiply x and width by the image's width, y and height by its height"
        )
        findings.error("bbox-normalised", problem)
        return
    over = ~in_image(x, y, x + w, y + h)
    if over.mean() > OVERREACHING_SHARE:
        corners = in_image(x, y, w, h) & (x < w) & (y < h)
        centres = in_image(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        for form, fitting in (
            ("[x1, y1, x2, y2]", corners), ("[centre x, centre y, width, height]", centres)
        ):  # fmt: skip
            if fitting.all():
                problem = (
                    f"{over.sum()} of {len(over)} boxes reach out of their image as [x, y, width,"
                    f" height], such as {_text(content.xywh[over][0])}, and all fit as {form}:"
                    " convert them"
                )
                findings.error("bbox-format", problem)
                return
    outside = (x + w < 0) | (y + h < 0) | (x > width - 1) | (y > height - 1)
    add, warn = findings.error, findings.warning
    told = np.zeros(len(over), bool)
    for kind, wrong, report, text in (
        ("bbox-negative", (w < 0) | (h < 0), add, "has a negative width or height"),
        ("bbox-outside", outside, add, "lies outside its image of {} × {}"),
        ("bbox-no-area", (w == 0) | (h == 0), warn, "has no area: training leaves it out"),
        ("bbox-over-edge", over, warn, "reaches over its image of {} × {}: training clips it"),
    ):
        for k in np.flatnonzero(wrong & ~told):
            identity, size = content.annotation_ids[k], map(int, content.image_sizes[k])
            problem = f"bbox {_text(content.xywh[k])} {text.format(*size)}"
            report(kind, f"annotation {identity}: {problem}", identity)
        told |= wrong


def _text(box: np.ndarray) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def _check_use(content: Content, names: dict[int, str], findings: Findings, trained: bool) -> None:
    """Check what training would make of it: images and classes without boxes, boxes given twice."""
    usable = np.flatnonzero(~content.crowd)
    if trained and not len(usable):
        findings.error("no-annotations", "every box has iscrowd 1: nothing to train on")
    with_boxes = {content.image_ids[k] for k in usable}
    for identity, image in content.images.items():
        if with_boxes and identity not in with_boxes:
            name = image["file_name"]
            use = "training leaves it out" if trained else "each detection in it counts as false"
            findings.warning("empty-image", f"image {name} has no box: {use}", name)
    counts = Counter(content.class_names[k] for k in usable)
    for name in names.values():
        if counts and not counts[name]:
            findings.warning("empty-class", f"category {name!r} has no box", name)
    boxes = zip(content.image_ids, content.class_names, map(tuple, content.xywh), strict=True)
    seen = set()
    for identity, box in zip(content.annotation_ids, boxes, strict=True):
        if box in seen:
            problem = f"annotation {identity}: its image has the same box of the same class twice"
            findings.warning("duplicate-box", problem, identity)
        seen.add(box)
