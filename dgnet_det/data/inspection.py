"""Everything that can be told of a user's dataset before training: all checks, and statistics."""

import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from dgnet_det.data.anchors import compare_anchors, percentiles
from dgnet_det.data.coco_checks import (
    Boxes,
    category_names,
    check_coco,
    compare_categories,
    read_coco,
)
from dgnet_det.data.findings import Findings
from dgnet_det.data.image_checks import ImageFile, check_files, check_presence, compare_images
from dgnet_det.errors import UserError

# COCO's limits between small, medium and large: the side of a square, pixels of the image.
SMALL, LARGE = 32, 96
# Errors after which there is no sense in comparing the categories of two files.
UNSOUND_CATEGORIES = ("category-keys", "duplicate-category-id", "duplicate-category-name")
# With fewer boxes, a class is hardly learned, and its AP mostly chance.
FEW_BOXES = 20
# Share of boxes that anchors should meet.
ENOUGH_MET = 0.9


class Split(NamedTuple):
    """A dataset that was looked at.

    Attributes:
        json_file, image_root: as given.
        coco: the content of the file.
        boxes: those that are sound.
        files: the images that decode, by file name.
    """

    json_file: str
    image_root: str
    coco: dict[str, Any]
    boxes: Boxes
    files: dict[str, ImageFile]


def inspect(
    cfg: CfgNode, train: tuple[str, str], val: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Check a dataset, or a training and a validation set, with all their images.

    Args:
        cfg: the config whose anchors and image size the boxes are compared with.
        train: the COCO JSON file and the image folder.
        val: the same of the validation set. Without, ``train`` is taken for both uses.

    Returns:
        ``errors`` and ``warnings`` (:class:`Finding` as dicts, with their ``line``), ``datasets``
        (:func:`describe` for each that could be read) and ``anchors`` (:func:`compare_anchors` of
        the training boxes; None where boxes are wrong or missing).
    """
    findings = Findings()
    first = _look(*train, findings, trained=True, evaluated=val is None)
    second = _look(*val, findings, trained=False, evaluated=True) if val else None
    if first and second:
        _compare(first, second, findings)
    anchors = None
    if first:
        usable = (first.boxes.xywh[:, 2:] > 0).all(axis=1) & ~first.boxes.crowd
        wrong = any(finding.kind.startswith("bbox") for finding in findings.of("error"))
        if usable.any() and not wrong:
            anchors = compare_anchors(
                cfg, first.boxes.xywh[usable], first.boxes.image_sizes[usable]
            )
            _check_anchors(first.json_file, anchors, findings)
        _check_class_sizes(first, findings)
    splits = [split for split in (first, second) if split]
    found = {
        f"{severity}s": [vars(each) | {"line": each.line()} for each in findings.of(severity)]
        for severity in ("error", "warning")
    }
    return {
        **found,
        "datasets": [describe(split, splits) for split in splits],
        "anchors": anchors,
    }


def _look(
    json_file: str, image_root: str, findings: Findings, *, trained: bool, evaluated: bool
) -> Split | None:
    """All checks of one dataset; None if its file cannot be read."""
    try:
        if not os.path.isdir(image_root):
            raise UserError(f"{image_root}: no such image folder")
        coco = read_coco(json_file)
    except UserError as error:
        findings.error("unreadable", json_file, error)
        return None
    images, boxes = check_coco(json_file, coco, findings, trained=trained, evaluated=evaluated)
    present = check_presence(json_file, list(images.values()), image_root, findings)
    files = check_files(json_file, present, image_root, findings)
    return Split(json_file, image_root, coco, boxes, files)


def _compare(train: Split, val: Split, findings: Findings) -> None:
    if not any(finding.kind in UNSOUND_CATEGORIES for finding in findings.of("error")):
        compare_categories(
            train.json_file,
            category_names(train.coco),
            val.json_file,
            category_names(val.coco),
            findings,
        )
    compare_images(train.json_file, train.files, val.json_file, val.files, findings)


def _check_anchors(path: str, anchors: dict[str, Any], findings: Findings) -> None:
    if anchors["config"]["meet"] < ENOUGH_MET:
        better = anchors["suggested"]
        mend = (
            f"{better['override']} would meet {better['meet']:.0%}"
            if better
            else "a larger INPUT.MIN_SIZE_TRAIN may help"
        )
        problem = f"the config's anchors meet {anchors['config']['meet']:.0%} of the boxes: {mend}"
        findings.warning("anchors", path, problem)


def _check_class_sizes(split: Split, findings: Findings) -> None:
    crowd = split.boxes.crowd
    counts = Counter(split.boxes.class_names[k] for k in np.flatnonzero(~crowd))
    for name, count in reversed(counts.most_common()):
        if count < FEW_BOXES:
            problem = f"category {name!r} has {count} boxes to learn from"
            findings.warning("few-boxes", split.json_file, problem, name)


def describe(split: Split, splits: Sequence[Split]) -> dict[str, Any]:
    """Statistics of a dataset, boxes marked as crowds left out.

    Args:
        split: the dataset.
        splits: all datasets that are looked at; images of its folder that none of them lists are
            counted.
    """
    usable = ~split.boxes.crowd
    xywh = split.boxes.xywh[usable]
    image_ids = [split.boxes.image_ids[k] for k in np.flatnonzero(usable)]
    class_names = [split.boxes.class_names[k] for k in np.flatnonzero(usable)]
    boxes_of = Counter(class_names)
    images_of = Counter(name for name, _ in set(zip(class_names, image_ids, strict=True)))
    names = [str(category.get("name")) for category in split.coco["categories"]]
    per_image = Counter(image_ids)
    sizes = Counter(file.upright_size for file in split.files.values())
    sides = np.sqrt(xywh[:, 2:].clip(0).prod(axis=1))
    positive = (xywh[:, 2:] > 0).all(axis=1)
    return {
        "json": split.json_file,
        "image_folder": split.image_root,
        "images": len(split.coco["images"]),
        "images_with_boxes": len(per_image),
        "images_not_listed": _count_unlisted(split, splits),
        "boxes": len(xywh),
        "crowd_boxes": int(split.boxes.crowd.sum()),
        "boxes_per_image": {
            "median": statistics.median(per_image.values()) if per_image else 0,
            "max": max(per_image.values(), default=0),
        },
        "image_sizes": {
            "different": len(sizes),
            "most_common": next((size for size, _ in sizes.most_common(1)), None),
            "smallest": min(sizes, key=math.prod, default=None),
            "largest": max(sizes, key=math.prod, default=None),
        },
        "box_sizes": percentiles(sides) if len(sides) else None,
        "small_medium_large": [
            int((sides < SMALL).sum()),
            int(((sides >= SMALL) & (sides < LARGE)).sum()),
            int((sides >= LARGE).sum()),
        ],
        "ratios": percentiles(xywh[positive, 3] / xywh[positive, 2]) if positive.any() else None,
        "classes": [
            {"name": name, "boxes": boxes_of[name], "images": images_of[name]} for name in names
        ],
    }


def _count_unlisted(split: Split, splits: Sequence[Split]) -> int:
    """Images in the folder of a dataset that no dataset lists."""
    listed = {
        os.path.abspath(os.path.join(other.image_root, str(image.get("file_name"))))
        for other in splits
        for image in other.coco["images"]
    }
    suffixes = Image.registered_extensions()
    found = (
        os.path.abspath(os.path.join(folder, name))
        for folder, _, names in os.walk(split.image_root)
        for name in names
        if os.path.splitext(name)[1].lower() in suffixes
    )
    return sum(path not in listed for path in found)
