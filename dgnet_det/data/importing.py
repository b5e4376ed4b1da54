"""Datasets in the formats of labelling tools become COCO JSON; images stay where they are."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgnet_det.data.findings import Findings, first_few
from dgnet_det.data.formats import Box
from dgnet_det.data.images import upright_size
from dgnet_det.data.layouts import detect_format, find_labelled, find_yolo
from dgnet_det.errors import UserError
from dgnet_det.utils.files import files_written_whole


class LabelledImage(NamedTuple):
    """An image: its file, width and height in pixels, and COCO's annotations of its objects, which
    lack ids."""

    path: Path
    size: tuple[int, int]
    objects: list[dict[str, Any]]


class Dataset(NamedTuple):
    """The classes in order, and the images of each split."""

    classes: list[str]
    splits: dict[str, list[LabelledImage]]


def read_dataset(
    path: Path,
    findings: Findings,
    *,
    layout: str | None = None,
    images: Path | None = None,
    classes: Sequence[str] = (),
    origin: int | None = None,
) -> Dataset:
    """Read a dataset in the format of a labelling tool.

    Boxes that are marked difficult get COCO's ``iscrowd`` 1: training leaves them out, and
    evaluation neither asks for them nor counts a detection there as false.

    Args:
        path: the folder, or the file that has its annotations or describes it.
        findings: what may be wrong is added to these.
        layout: one of ``FORMATS``; None: what the folder looks like.
        images: a folder of the images that is not below ``path``.
        classes: the classes in order; empty: YOLO's own, else those of the data, by name.
        origin: 1 where coordinates count pixels from 1, both ends in the box, as Pascal VOC says; 0
            where they are edges. None: 0, but 1 for Pascal VOC without any coordinate below 1,
            since many tools write edges under its names.

    Raises:
        UserError: the first thing that is wrong, and how many more files have it.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder")
    layout = layout or detect_format(path)
    if layout == "yolo":
        if images is not None or origin is not None:
            raise UserError(f"{path}: YOLO tells the images and has no origin: leave both out")
        names, labelled = find_yolo(path, classes, findings)
    else:
        names, labelled = list(classes), find_labelled(path, layout, images, findings)
    findings.raise_first_error()
    boxes = [box for _, _, entry in labelled for box in entry.boxes]
    names = names or sorted({box.name for box in boxes})
    if not names:
        raise UserError(f"{path}: no object in any file: there is nothing to learn")
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path}: the class {name!r} is given twice")
    for name in sorted({box.name for box in boxes} - set(names)):
        raise UserError(f"{path}: class {name!r} is not among those given")
    if origin is None:
        origin = int(layout == "voc" and all(min(box.ltrb) >= 1 for box in boxes))
    splits: dict[str, list[LabelledImage]] = {}
    for split, image, entry in labelled:
        try:
            size = upright_size(image)
        except UserError as error:
            findings.error("image", error, image.name)
            continue
        if entry.size not in (None, size):
            problem = f"the image has {size[0]} × {size[1]} pixels, {entry.file.name} says"
            problem += " {} × {}: see that the boxes fit".format(*entry.size)
            findings.warning("size", problem, image.name, image)
        if entry.others:
            problem = f"has {first_few(entry.others)}: left out, as all that is no box or polygon"
            findings.warning("shape", problem, image.name, entry.file)
        scale = size if entry.fractions else (1, 1)
        objects = [_annotation(box, names, scale, origin) for box in entry.boxes]
        splits.setdefault(split, []).append(LabelledImage(image, size, objects))
    findings.raise_first_error()
    return Dataset(names, splits)


def _annotation(
    box: Box, names: Sequence[str], scale: tuple[int, int], origin: int
) -> dict[str, Any]:
    (left, top, right, bottom), (x, y) = box.ltrb, scale
    width, height = (right - left + origin) * x, (bottom - top + origin) * y
    return {
        "category_id": names.index(box.name) + 1,
        "bbox": [(left - origin) * x, (top - origin) * y, width, height],
        "area": width * height,
        "iscrowd": int(box.crowd),
    }


def split_off(dataset: Dataset, share: float, seed: int, group_by: str | None = None) -> Dataset:
    """A dataset of one split with about a share of its images, drawn at random, as the split
    ``val``.

    Args:
        dataset: the dataset.
        share: of the images, between 0 and 1.
        seed: the same draws the same images.
        group_by: a regular expression for the paths of images from their folder. Images that agree
            in what its groups match, or all of it where it has none, stay together.

    Raises:
        UserError: the dataset has splits, a split would be empty, or the expression is none or does
            not match an image.
    """
    if len(dataset.splits) > 1:
        raise UserError(f"the data have splits already: {', '.join(dataset.splits)}")
    (images,) = dataset.splits.values()
    folder = image_folder(images)
    groups: dict[Any, list[LabelledImage]] = {}
    for image in images:
        groups.setdefault(_group_of(image.path.relative_to(folder), group_by), []).append(image)
    keys, val = list(groups), set()
    target, number = round(share * len(images)), 0
    for k in np.random.default_rng(seed).permutation(len(keys)):
        size = len(groups[keys[k]])
        if abs(number + size - target) < abs(number - target):
            val.add(keys[k])
            number += size
    if not 0 < number < len(images):
        raise UserError(
            f"a share of {share} gives {number} of {len(images)} images in {len(keys)} groups for"
            " validation, and each split needs one"
        )
    parts: dict[str, list[LabelledImage]] = {"train": [], "val": []}
    for key, group in groups.items():
        parts["val" if key in val else "train"] += group
    return dataset._replace(splits=parts)


def _group_of(path: Path, pattern: str | None) -> Any:
    if pattern is None:
        return path
    try:
        found = re.search(pattern, path.as_posix())
    except re.error as error:
        raise UserError(f"{pattern}: no regular expression: {error}") from error
    if found is None:
        raise UserError(f"{pattern}: does not match {path.as_posix()}, so that it has no group")
    return found.groups() or found[0]


def image_folder(images: Sequence[LabelledImage]) -> Path:
    """The folder that all of some images are in."""
    return Path(os.path.commonpath([image.path.parent for image in images]))


def write_coco(dataset: Dataset, output: Path, description: str) -> None:
    """Write ``train.json`` and so on into a folder, all of them or none. Classes are 1 to K; file
    names start from the split's :func:`image_folder`."""
    categories = [{"id": k, "name": name} for k, name in enumerate(dataset.classes, 1)]
    with files_written_whole(output) as temporary:
        for split, images in dataset.splits.items():
            folder, entries = image_folder(images), []
            annotations: list[dict[str, Any]] = []
            for image_id, (path, (width, height), objects) in enumerate(images, 1):
                name = path.relative_to(folder).as_posix()
                entries.append(
                    {"id": image_id, "file_name": name, "width": width, "height": height}
                )
                for each in objects:  # COCO's evaluation miscounts an annotation with id 0
                    annotations.append({"id": len(annotations) + 1, "image_id": image_id, **each})
            coco = {
                "info": {"description": description},
                "images": entries,
                "annotations": annotations,
                "categories": categories,
            }
            (temporary / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")


def summary(dataset: Dataset, output: Path) -> dict[str, Any]:
    """What was written: for each split its file, image folder, and numbers of images and boxes."""
    splits = {}
    for name, images in dataset.splits.items():
        objects = [each for image in images for each in image.objects]
        counts = Counter(each["category_id"] for each in objects)
        splits[name] = {
            "json": str(output / f"{name}.json"),
            "image_folder": str(image_folder(images)),
            "images": len(images),
            "images_without_boxes": sum(not image.objects for image in images),
            "boxes": len(objects),
            "difficult_boxes": sum(each["iscrowd"] for each in objects),
            "classes": {name: counts[k] for k, name in enumerate(dataset.classes, 1)},
        }
    return {"classes": dataset.classes, "splits": splits}
