"""Labelled images, split at random and written as COCO JSON."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgnet_det.errors import UserError
from dgnet_det.utils.files import files_written_whole


class LabelledImage(NamedTuple):
    """An image: its file, width and height in pixels, and COCO's annotations of its objects, which
    lack ids."""

    path: Path
    size: tuple[int, int]
    objects: list[dict[str, Any]]


# The images of each split.
Splits = dict[str, list[LabelledImage]]


def split_off(splits: Splits, share: float, seed: int, group_by: str | None = None) -> Splits:
    """Draw about a share of a dataset's images, which are one split, as ``val``. The same
    seed draws the same.

    ``group_by`` is a regular expression for the paths of images from their folder. Images that
    agree in what its groups match, or all of it where it has none, stay together.

    Raises:
        UserError: the dataset has splits, a split would be empty, or the expression is none or does
            not match an image.
    """
    if len(splits) > 1:
        raise UserError(f"the data have splits already: {', '.join(splits)}")
    (images,) = splits.values()
    try:
        pattern = re.compile(group_by or ".*")
    except re.error as error:
        raise UserError(f"{group_by}: no regular expression: {error}") from error
    folder, members = image_folder(images), defaultdict[Any, list[Path]](list)
    for image in images:
        name = image.path.relative_to(folder).as_posix()
        found = pattern.search(name)
        if found is None:
            raise UserError(f"{group_by}: does not match {name}, so that it has no group")
        members[found.groups() or found[0]].append(image.path)
    groups = list(members.values())
    val, target = set[Path](), round(share * len(images))
    for k in np.random.default_rng(seed).permutation(len(groups)):
        if abs(len(val) + len(groups[k]) - target) < abs(len(val) - target):
            val.update(groups[k])
    if not 0 < len(val) < len(images):
        raise UserError(
            f"a share of {share} gives {len(val)} of {len(images)} images in {len(groups)} groups"
            " for validation, and each split needs one"
        )
    return {
        "train": [image for image in images if image.path not in val],
        "val": [image for image in images if image.path in val],
    }


def image_folder(images: Sequence[LabelledImage]) -> Path:
    """The folder that all of some images are in."""
    return Path(os.path.commonpath([image.path.parent for image in images]))


def write_coco(
    categories: Sequence[dict[str, Any]], splits: Splits, output: Path, description: str
) -> dict[str, Any]:
    """Write ``train.json`` and so on into a folder, all of them or none, and say what was written.
    File names start from the split's :func:`image_folder`."""
    written = {}
    with files_written_whole(output) as temporary:
        for split, images in splits.items():
            folder = image_folder(images)
            entries, objects = list[dict[str, Any]](), list[dict[str, Any]]()
            for number, (path, (width, height), boxes) in enumerate(images, 1):
                name = path.relative_to(folder).as_posix()
                entry = {"id": number, "file_name": name, "width": width, "height": height}
                entries.append(entry)
                for box in boxes:  # COCO's evaluation miscounts an annotation with id 0
                    objects.append({"id": len(objects) + 1, "image_id": number, **box})
            coco = {"info": {"description": description}, "images": entries, "annotations": objects}
            coco["categories"] = list(categories)
            (temporary / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")
            counts = Counter(each["category_id"] for each in objects)
            written[split] = {
                "json": str(output / f"{split}.json"),
                "image_folder": str(folder),
                "images": len(images),
                "images_without_boxes": sum(not image.objects for image in images),
                "boxes": len(objects),
                "difficult_boxes": sum(each["iscrowd"] for each in objects),
                "classes": {each["name"]: counts[each["id"]] for each in categories},
            }
    return {"classes": [each["name"] for each in categories], "splits": written}
