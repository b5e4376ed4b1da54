"""Checks of the user's data: the quick part before training, and all of it with statistics."""

import logging
import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from dgnet_det.config import NUM_CLASSES_KEYS
from dgnet_det.data.anchors import compare_anchors, percentiles
from dgnet_det.data.coco import forget_files
from dgnet_det.data.coco_checks import Content, check_coco, compare_categories
from dgnet_det.data.findings import Findings
from dgnet_det.data.image_checks import (
    LEARNED_BY_HEART,
    ImageFile,
    check_files,
    check_presence,
    compare_images,
)
from dgnet_det.data.images import is_image
from dgnet_det.errors import UserError

# COCO's limits between small, medium and large: the side of a square, pixels of the image.
SMALL, LARGE = 32, 96
SIZES = (f"< {SMALL}²", f"< {LARGE}²", f"≥ {LARGE}²")
# With fewer boxes, a class is hardly learned, and its AP mostly chance.
FEW_BOXES = 20
# Share of boxes that anchors should meet.
ENOUGH_MET = 0.9


def check_datasets(cfg: CfgNode, names: Sequence[str], *, evaluated: bool = False) -> None:
    """The quick part of ``tools/check_dataset.py``, in which no image is read. Those ``names`` are
    for training that are in ``DATASETS.TRAIN``, and for evaluation those in ``DATASETS.TEST``, or
    all where they are to be ``evaluated``.

    Every name must be registered. Of a dataset in COCO format, its JSON, its folder and its images
    must exist, its content must be sound, and its number of classes the model's. What may be meant
    is logged as a warning, and so are images that are in two splits. Datasets of other formats are
    left to Detectron2.

    Raises:
        UserError: the first thing that is wrong.
    """
    findings = Findings()
    checked: dict[str, Content] = {}
    for name in dict.fromkeys(names):
        keys = [key for key in ("TRAIN", "TEST") if name in cfg.DATASETS[key]]
        of_key = f" (DATASETS.{keys[0]})" if keys else ""
        if name not in DatasetCatalog.list():
            raise UserError(
                f"{name}{of_key}: no such dataset is registered: correct the name, or name your"
                " files in DATASETS.TRAIN_JSON, TRAIN_IMAGES, VAL_JSON and VAL_IMAGES"
            )
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") != "coco":
            continue
        json_file, image_root = metadata.json_file, metadata.image_root
        mend = "set $DETECTRON2_DATASETS to the folder that holds your datasets (else: datasets)"
        if name == json_file:  # named by its file in the config
            mend = "correct DATASETS.TRAIN_JSON, TRAIN_IMAGES, VAL_JSON or VAL_IMAGES"
        if not PathManager.isfile(json_file):
            raise UserError(f"{json_file}: no such annotation file of {name}{of_key}: {mend}")
        if not PathManager.isdir(image_root):
            raise UserError(f"{image_root}: no such image folder of {name}{of_key}: {mend}")
        of_file = findings.of_file(json_file)
        content = check_coco(
            cfg, of_file, trained="TRAIN" in keys, evaluated=evaluated or "TEST" in keys
        )
        check_presence(content.images.values(), image_root, of_file, mend)
        findings.raise_first_error()
        checked[name] = content
    for train in cfg.DATASETS.TRAIN:
        for test in cfg.DATASETS.TEST:
            if train != test and train in checked and test in checked:
                _check_pair(train, checked[train], test, checked[test], findings)
    group = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    for name, content in checked.items():
        if group is not None and len(content.names) != cfg.MODEL[group].NUM_CLASSES:
            raise UserError(
                f"MODEL.{group}.NUM_CLASSES {cfg.MODEL[group].NUM_CLASSES}: {name} has"
                f" {len(content.names)} categories: set the key to that number"
            )
    forget_files()
    for finding in findings.of("warning"):
        logging.getLogger(__name__).warning(finding.line())


def _check_pair(train: str, ours: Content, test: str, theirs: Content, findings: Findings) -> None:
    """Check a test set against a training set. A run may be meant to learn its test images, to see
    whether it learns at all."""
    a, b = MetadataCatalog.get(train), MetadataCatalog.get(test)
    of_file = findings.of_file(b.json_file)
    compare_categories(a.json_file, ours, theirs, of_file)
    findings.raise_first_error()
    for path in sorted(_paths(a.image_root, ours) & _paths(b.image_root, theirs)):
        problem = f"{path} is in the training set too: {LEARNED_BY_HEART}"
        of_file.warning("shared-image", problem, path)


class Inspected(NamedTuple):
    """A dataset whose images were read: its JSON file and image folder, what is sound of the file,
    and the images that decode, by file name."""

    json_file: str
    image_root: str
    content: Content
    files: dict[str, ImageFile]


def inspect(
    cfg: CfgNode, train: tuple[str, str], val: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Check a dataset, or a training and a validation set, with all their images, against the
    model, anchors and image size of a config.

    Args:
        cfg: the config.
        train, val: a COCO JSON file and its image folder. Without ``val``, ``train`` is taken for
            both uses.

    Returns:
        ``errors`` and ``warnings`` (:class:`Finding` as dicts, with their ``line``), ``datasets``
        (:func:`describe` for each that could be read) and ``anchors`` (:func:`compare_anchors` of
        the training boxes; None where boxes are wrong or missing).
    """
    findings = Findings()
    first = _look(cfg, *train, findings, trained=True, evaluated=val is None)
    second = _look(cfg, *val, findings, trained=False, evaluated=True) if val else None
    wrong = {finding.kind for finding in findings.of("error")}
    if first and second:
        of_val = findings.of_file(second.json_file)
        if not any("category-" in kind for kind in wrong):
            compare_categories(first.json_file, first.content, second.content, of_val)
        compare_images(first.json_file, first.files, second.files, of_val)
    anchors = None
    if first:
        boxes, image_sizes = first.content.usable().boxes()
        whole = (boxes[:, 2:] > 0).all(axis=1)
        if whole.any() and not any("bbox" in kind for kind in wrong):
            anchors = compare_anchors(cfg, boxes[whole], image_sizes[whole])
        _check_training(first, anchors, findings.of_file(first.json_file))
    splits = [split for split in (first, second) if split]
    found = {
        f"{severity}s": [vars(each) | {"line": each.line()} for each in findings.of(severity)]
        for severity in ("error", "warning")
    }
    return found | {"datasets": [describe(split, splits) for split in splits], "anchors": anchors}


def _look(
    cfg: CfgNode,
    json_file: str,
    image_root: str,
    findings: Findings,
    *,
    trained: bool,
    evaluated: bool,
) -> Inspected | None:
    """All checks of one dataset; None if its file cannot be read."""
    of_file = findings.of_file(json_file)
    try:
        if not os.path.isdir(image_root):
            raise UserError(f"{image_root}: no such image folder")
        content = check_coco(cfg, of_file, trained=trained, evaluated=evaluated)
    except UserError as error:
        of_file.error("unreadable", error)
        return None
    present = check_presence(content.images.values(), image_root, of_file)
    files = check_files(present, image_root, of_file)
    return Inspected(json_file, image_root, content, files)


def _check_training(split: Inspected, anchors: dict[str, Any] | None, findings: Findings) -> None:
    """Warn where anchors meet few boxes, and where classes have few."""
    if anchors and anchors["config"]["meet"] < ENOUGH_MET:
        better = anchors["suggested"]
        mend = "a larger INPUT.MIN_SIZE_TRAIN may help"
        if better:
            mend = f"{better['override']} would meet {better['meet']:.0%}"
        problem = f"the config's anchors meet {anchors['config']['meet']:.0%} of the boxes: {mend}"
        findings.warning("anchors", problem)
    counts = Counter(name for name, _ in split.content.usable().class_and_image())
    for name, count in reversed(counts.most_common()):
        if count < FEW_BOXES:
            problem = f"category {name!r} has {count} boxes to learn from"
            findings.warning("few-boxes", problem, name)


def describe(split: Inspected, splits: Sequence[Inspected]) -> dict[str, Any]:
    """Statistics of a dataset, boxes marked as crowds left out. Images of its folder that none of
    ``splits`` lists are counted."""
    content = split.content.usable()
    boxes, _ = content.boxes()
    objects = content.class_and_image()
    boxes_of, images_of = (Counter(name for name, _ in each) for each in (objects, set(objects)))
    per_image = Counter(image for _, image in objects)
    sizes = Counter(file.upright_size for file in split.files.values())
    sides = np.sqrt(boxes[:, 2:].clip(0).prod(axis=1))
    by_size = np.histogram(sides, [0, SMALL, LARGE, np.inf])[0]
    positive = boxes[(boxes[:, 2:] > 0).all(axis=1)]
    listed = {path for each in splits for path in _paths(each.image_root, each.content)}
    there = Path(split.image_root).rglob("*")
    return {
        "json": split.json_file,
        "image_folder": split.image_root,
        "images": len(content.images),
        "images_with_boxes": len(per_image),
        "images_not_listed": sum(is_image(f) and os.path.abspath(f) not in listed for f in there),
        "boxes": len(boxes),
        "crowd_boxes": len(split.content.annotations) - len(boxes),
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
        "box_sides_in_pixels": percentiles(sides),
        "small_medium_large": dict(zip(SIZES, map(int, by_size), strict=True)),
        "height_by_width": percentiles(positive[:, 3] / positive[:, 2]),
        "classes": [
            {"name": name, "boxes": boxes_of[name], "images": images_of[name]}
            for name in content.names.values()
        ],
    }


def _paths(image_root: str, content: Content) -> set[str]:
    """Where the images of a dataset are, as absolute paths."""
    names = (image["file_name"] for image in content.images.values())
    return {os.path.abspath(os.path.join(image_root, name)) for name in names}
