"""Datasets in Pascal VOC's or YOLO's format become COCO JSON; images stay where they are."""

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgnet_det.data.findings import Findings
from dgnet_det.data.raw import RawDataset, RawSplit
from dgnet_det.data.voc import has_voc, read_voc
from dgnet_det.data.yolo import has_yolo, read_yolo
from dgnet_det.errors import UserError
from dgnet_det.utils.files import written_whole

FORMATS = ("voc", "yolo")


def read_raw(
    folder: Path,
    findings: Findings,
    *,
    layout: str | None = None,
    images: Path | None = None,
    classes: Sequence[str] = (),
    origin: int | None = None,
) -> RawDataset:
    """Read a dataset in Pascal VOC's or YOLO's format.

    Args:
        folder: of the dataset; for YOLO also its ``data.yaml``.
        findings: what may be wrong is added to these.
        layout: ``voc`` or ``yolo``; None: what the folder looks like.
        images, origin: as in :func:`read_voc`.
        classes: the classes in order, where the data do not say.

    Raises:
        UserError: the first thing that is wrong, and how many more files have it.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    if folder.is_file():
        if folder.suffix not in (".yaml", ".yml") or layout == "voc":
            raise UserError(f"{folder}: no folder: name the folder of the dataset")
        layout = "yolo"
    if layout is None:
        found = [n for n, has in zip(FORMATS, (has_voc, has_yolo), strict=True) if has(folder)]
        if len(found) != 1:
            what = "both Pascal VOC and YOLO" if found else "neither Pascal VOC nor YOLO"
            raise UserError(f"{folder}: looks like {what}: say which it is with --format")
        layout = found[0]
    if layout == "yolo" and (images is not None or origin is not None):
        raise UserError("--images, --origin: these are of Pascal VOC, and the format is yolo")
    if layout == "voc":
        dataset = read_voc(folder, findings, images, classes, origin)
    else:
        dataset = read_yolo(folder, findings, classes)
    if not dataset.classes:
        raise UserError(f"{folder}: no object in any file: there is nothing to learn")
    repeated = [name for name, count in Counter(dataset.classes).items() if count > 1]
    if repeated:
        raise UserError(f"{folder}: the class {repeated[0]!r} is given twice")
    findings.raise_first_error()
    return dataset


def split_off(dataset: RawDataset, share: float, seed: int) -> RawDataset:
    """A dataset of one split with a random share of its images as the split ``val``.

    Raises:
        UserError: it has splits, too few images, or ``share`` is not between 0 and 1.
    """
    if len(dataset.splits) > 1:
        names = ", ".join(dataset.splits)
        raise UserError(f"--val-share {share}: the data have splits, {names}: leave it out")
    (split,) = dataset.splits.values()
    number = round(share * len(split.images))
    if not 0 < number < len(split.images):
        raise UserError(
            f"--val-share {share}: gives {number} of {len(split.images)} images for validation, and"
            " each split needs one"
        )
    order = np.random.default_rng(seed).permutation(len(split.images))
    val = {int(k) for k in order[:number]}
    parts: dict[str, RawSplit] = {}
    for name, inside in (("train", False), ("val", True)):
        images = [image for k, image in enumerate(split.images) if (k in val) is inside]
        parts[name] = split._replace(images=images)
    return dataset._replace(splits=parts)


def coco_of(split: RawSplit, classes: Sequence[str], description: str) -> dict[str, Any]:
    """A split in COCO's format: classes are 1 to K, file names start from the split's folder.

    Boxes that are marked difficult get ``iscrowd`` 1: training leaves them out, and evaluation
    neither asks for them nor counts a detection there as false.
    """
    ids = {name: k for k, name in enumerate(classes, 1)}
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(split.images, 1):
        for box in image.boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[box.name],
                    "bbox": list(box.xywh),
                    "area": box.xywh[2] * box.xywh[3],
                    "iscrowd": int(box.crowd),
                }
            )
    return {
        "info": {"description": description},
        "images": [
            {
                "id": k,
                "file_name": image.path.relative_to(split.folder).as_posix(),
                "width": image.size[0],
                "height": image.size[1],
            }
            for k, image in enumerate(split.images, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for name, k in ids.items()],
    }


def write_coco(dataset: RawDataset, output: Path, description: str) -> dict[str, Path]:
    """Write ``train.json`` and so on into a folder, all of them or none.

    Returns:
        The file of each split.
    """
    files = {split: output / f"{split}.json" for split in dataset.splits}
    with contextlib.ExitStack() as stack:
        for split, path in files.items():
            temporary = stack.enter_context(written_whole(path))
            coco = coco_of(dataset.splits[split], dataset.classes, description)
            temporary.write_text(json.dumps(coco), encoding="utf-8")
    return files


def summary(dataset: RawDataset, files: dict[str, Path]) -> dict[str, Any]:
    """What was written: for each split its file, image folder, and numbers of images and boxes."""
    splits = {}
    for name, split in dataset.splits.items():
        boxes = [box for image in split.images for box in image.boxes]
        counts = Counter(box.name for box in boxes)
        splits[name] = {
            "json": str(files[name]),
            "image_folder": str(split.folder),
            "images": len(split.images),
            "images_without_boxes": sum(not image.boxes for image in split.images),
            "boxes": len(boxes),
            "difficult_boxes": sum(box.crowd for box in boxes),
            "classes": {name: counts[name] for name in dataset.classes},
        }
    return {"classes": dataset.classes, "splits": splits}
