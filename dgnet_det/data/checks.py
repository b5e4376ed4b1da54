"""Checks of the user's data: the quick part before training, and all of it with statistics."""

import itertools
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

from dgnet_det.config import NUM_CLASSES_KEYS
from dgnet_det.data import coco, image_checks
from dgnet_det.data.anchors import compare_anchors, percentiles
from dgnet_det.data.coco_checks import Content, check_coco, compare_categories
from dgnet_det.data.findings import Findings
from dgnet_det.data.image_checks import LEARNED_BY_HEART, ImageFile
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
    """Check registered datasets in COCO's format without reading an image, and log warnings. Those
    in ``DATASETS.TRAIN`` are for training, those in ``DATASETS.TEST``, or all where they are to be
    ``evaluated``, for evaluation. Datasets of other formats are left to Detectron2.

    Raises:
        UserError: the first thing that is wrong: a name that is not registered, a JSON, folder or
            image that is not there, bad content, or a number of classes that is not the model's.
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
        mend = "set $DETECTRON2_DATASETS to the folder that holds your datasets (else: datasets)"
        if name == metadata.json_file:  # named by its file in the config
            mend = "correct DATASETS.TRAIN_JSON, TRAIN_IMAGES, VAL_JSON or VAL_IMAGES"
        files = metadata.json_file, metadata.image_root
        of_file, tested = findings.of_file(files[0]), evaluated or "TEST" in keys
        missing = f" of {name}{of_key}: {mend}"
        content = check_coco(cfg, *files, of_file, "TRAIN" in keys, tested, missing)
        image_checks.check_presence(content, of_file, mend)
        findings.raise_first_error()
        checked[name] = content
    for train, test in itertools.product(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST):
        if train != test and train in checked and test in checked:
            _check_pair(checked[train], checked[test], findings)
    group = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    for name, content in checked.items():
        if group is not None and len(content.names) != cfg.MODEL[group].NUM_CLASSES:
            raise UserError(
                f"MODEL.{group}.NUM_CLASSES {cfg.MODEL[group].NUM_CLASSES}: {name} has"
                f" {len(content.names)} categories: set the key to that number"
            )
    coco.forget_files()
    for finding in findings.of("warning"):
        logging.getLogger(__name__).warning(finding.line())


def _check_pair(train: Content, test: Content, findings: Findings) -> None:
    """Check a test set against a training set. Images in both are a warning: a run may be meant to
    learn its test images, to see whether it learns at all."""
    of_file = findings.of_file(test.json_file)
    compare_categories(train, test, of_file)
    findings.raise_first_error()
    for path in sorted(train.paths() & test.paths()):
        problem = f"{path} is in the training set too: {LEARNED_BY_HEART}"
        of_file.warning("shared-image", problem, path)


class Inspected(NamedTuple):
    """The sound content of a dataset's file, and its images that decode, by file name."""

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
    splits: dict[str, Inspected] = {}
    for key, files in {"train": train, "val": val}.items():
        if files is None:
            continue
        of_file, evaluated = findings.of_file(files[0]), key == "val" or val is None
        try:
            content = check_coco(cfg, *files, of_file, key == "train", evaluated)
        except UserError as error:
            of_file.error("unreadable", error)
            continue
        images = image_checks.check_files(
            image_checks.check_presence(content, of_file), files[1], of_file
        )
        splits[key] = Inspected(content, images)
    wrong = {finding.kind for finding in findings.of("error")}
    if len(splits) == 2:
        first, second = splits.values()
        of_val = findings.of_file(second.content.json_file)
        if not any("category-" in kind for kind in wrong):
            compare_categories(first.content, second.content, of_val)
        image_checks.compare_images(first.content.json_file, first.files, second.files, of_val)
    anchors = None
    if "train" in splits:
        usable = splits["train"].content.usable()
        boxes, image_sizes = usable.boxes()
        whole = (boxes[:, 2:] > 0).all(axis=1)
        if whole.any() and not any("bbox" in kind for kind in wrong):
            anchors = compare_anchors(cfg, boxes[whole], image_sizes[whole])
        _check_training(usable, anchors, findings.of_file(train[0]))
    found = {
        f"{severity}s": [vars(each) | {"line": each.line()} for each in findings.of(severity)]
        for severity in ("error", "warning")
    }
    listed = {path for split in splits.values() for path in split.content.paths()}
    datasets = [describe(split, listed) for split in splits.values()]
    return found | {"datasets": datasets, "anchors": anchors}


def _check_training(usable: Content, anchors: dict[str, Any] | None, findings: Findings) -> None:
    """Warn where anchors meet few boxes, and where classes have few."""
    if anchors and anchors["config"]["meet"] < ENOUGH_MET:
        better = anchors["suggested"]
        mend = "a larger INPUT.MIN_SIZE_TRAIN may help"
        if better:
            mend = f"{better['override']} would meet {better['meet']:.0%}"
        problem = f"the config's anchors meet {anchors['config']['meet']:.0%} of the boxes: {mend}"
        findings.warning("anchors", problem)
    counts = Counter(name for name, _ in usable.class_and_image())
    for name, count in reversed(counts.most_common()):
        if count < FEW_BOXES:
            problem = f"category {name!r} has {count} boxes to learn from"
            findings.warning("few-boxes", problem, name)


def describe(split: Inspected, listed: set[str]) -> dict[str, Any]:
    """Statistics of a dataset, boxes marked as crowds left out. Images of its folder whose paths
    are not ``listed`` are counted."""
    content = split.content.usable()
    boxes, _ = content.boxes()
    objects = content.class_and_image()
    boxes_of, images_of = (Counter(name for name, _ in each) for each in (objects, set(objects)))
    per_image = Counter(image for _, image in objects)
    sizes = Counter(file.upright_size for file in split.files.values())
    sides = np.sqrt(boxes[:, 2:].clip(0).prod(axis=1))
    by_size = np.histogram(sides, [0, SMALL, LARGE, np.inf])[0]
    positive = boxes[(boxes[:, 2:] > 0).all(axis=1)]
    there = Path(content.image_root).rglob("*")
    return {
        "json": content.json_file,
        "image_folder": content.image_root,
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
