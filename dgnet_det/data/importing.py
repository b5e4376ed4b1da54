"""Datasets in the formats of labelling tools become COCO JSON; images stay where they are."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from tqdm import tqdm

from dgnet_det.data.findings import Findings
from dgnet_det.data.formats import (
    READERS,
    Box,
    Entry,
    has_box_columns,
    read_annotations,
    read_text,
    reading,
)
from dgnet_det.data.images import is_image, opened, upright_size
from dgnet_det.errors import UserError, first_few
from dgnet_det.utils.files import files_written_whole

IMAGE_FOLDERS = {"JPEGImages", "images", "Images"}
CLASS_LISTS = ("classes.txt", "obj.names")  # of YOLO
# Splits as Detectron2 names them, by the names of folders and files.
SPLITS = {name: name for name in ("train", "val", "test")} | {
    "training": "train", "valid": "val", "validation": "val", "testing": "test"
}  # fmt: skip


class LabelledImage(NamedTuple):
    """An image: its file, width and height in pixels, and COCO's annotations of its objects, which
    lack ids."""

    path: Path
    size: tuple[int, int]
    objects: list[dict[str, Any]]


# The images of each split.
Splits = dict[str, list[LabelledImage]]


def read_dataset(
    path: Path,
    findings: Findings,
    *,
    layout: str | None = None,
    images: Path | None = None,
    classes: Sequence[str] = (),
    origin: int | None = None,
) -> tuple[list[str], Splits]:
    """The classes, in order, and the images of a dataset in the format of a labelling tool.

    Annotations and images may lie in any folders. The split of an image is what ``ImageSets/Main``
    says, else CVAT's subset, else what a folder, or a CSV file, is called after, else ``train``.
    Boxes that are left out get COCO's ``iscrowd`` 1. ``findings`` get what may be wrong.

    Args:
        path: the folder, or the file that has the annotations or describes it.
        layout: one of ``READERS``; None: what the folder looks like.
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
    layout = layout or _detect_format(path)
    names, options, split_names = list(classes), dict[str, Any](), SPLITS
    if layout == "yolo":
        data = _read_yaml(path)
        names, split_names = names or _yolo_classes(path, data), SPLITS | _yolo_splits(data)
        options = {"classes": names, "keypoints": "kpt_shape" in data}
    read = partial(read_annotations, layout, **options)
    labelled = _find_labelled(path, layout, read, split_names, images, findings)
    findings.raise_first_error()
    boxes = [box for _, _, entry in labelled for box in entry.boxes]
    names = names or sorted({box.name for box in boxes})
    if not boxes:
        raise UserError(f"{path}: no object in any file: there is nothing to learn")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: a class is given twice: {', '.join(names)}")
    if unknown := {box.name for box in boxes} - set(names):
        raise UserError(f"{path}: class {min(unknown)!r} is not among those given")
    if origin is None:
        origin = int(layout == "voc" and all(min(box.ltrb) >= 1 for box in boxes))
    splits: Splits = {}
    for split, image, entry in labelled:
        try:
            with opened(image) as picture:
                size = upright_size(picture)
            scale = size if entry.fractions else (1, 1)
            first = 0 if entry.fractions else origin
            objects = [_annotation(box, names, scale, first) for box in entry.boxes]
            splits.setdefault(split, []).append(LabelledImage(image, size, objects))
        except UserError as error:
            findings.error("image", error, image.name)
    findings.raise_first_error()
    return names, splits


def _find_labelled(
    path: Path,
    layout: str,
    read: Callable[[Path], Iterable[Entry]],
    split_names: Mapping[str, str],
    image_folder: Path | None,
    findings: Findings,
) -> list[tuple[str, Path, Entry]]:
    """The images of a dataset, each with its split before it and what is said of it behind it."""

    def inside(folder: Path, file: Path) -> tuple[str, ...]:
        return file.relative_to(folder).parts

    def split_called(words: Iterable[str]) -> str:
        found = (split_names[w.lower()] for w in words if w.lower() in split_names)
        return next(found, "train")

    folder, suffix = path if path.is_dir() else path.parent, READERS[layout][0]
    files = _files(path if path.suffix.lower() == suffix else folder, suffix)
    image_folder = image_folder or folder
    images = [file for file in _files(image_folder) if is_image(file)]
    images = [f for f in images if IMAGE_FOLDERS & set(inside(image_folder, f))] or images
    by_stem: dict[str, list[Path]] = {}
    for image in images:
        by_stem.setdefault(image.stem, []).append(image)
    if layout == "yolo":
        files = [f for f in files if f.stem in by_stem or "labels" in f.parts]
        files = [f for f in files if f.name not in CLASS_LISTS]
    if not files:
        raise UserError(f"{path}: no {suffix} file with boxes: name the folder that has them")
    lists = _split_lists(folder / "ImageSets" / "Main", files, findings)
    labelled, used = [], set()
    for file in tqdm(files, desc=folder.name, unit="file"):
        try:
            for entry in read(file):
                image = _find_image(by_stem, entry.names, file)
                used.add(image)
                words = [entry.split, *inside(image_folder, image), *inside(folder, file)]
                words += re.split("[^a-zA-Z]", file.stem) if layout == "csv" else []
                for split in lists.get(file.stem, []) if lists else [split_called(words)]:
                    labelled.append((split, image, entry))
                if entry.left_out:
                    problem = f"has {first_few(entry.left_out)}: only boxes and polygons are taken"
                    findings.warning("shape", problem, image.name, file)
        except UserError as error:
            findings.error("label", error, file.name)
    for image in sorted(set(images) - used):
        problem = "no annotation: left out; give it one without objects if nothing is on it"
        if layout == "yolo":
            problem = "no label file: taken for an image without objects"
            labelled.append((split_called(inside(image_folder, image)), image, Entry((), [])))
        findings.warning("no-label", problem, image.name, image)
    return sorted(labelled, key=lambda each: each[1])


def _find_image(by_stem: dict[str, list[Path]], names: Sequence[str], annotation: Path) -> Path:
    """The image that has the stem of the first name, else of the next; of several, the one whose
    path has most in common with names and annotation."""
    paths = [Path(name.replace("\\", "/")) for name in names if name]
    stems = [path.stem if is_image(path) else path.name for path in paths]
    found = next((by_stem[stem] for stem in stems if stem in by_stem), [])
    about = {part for path in (annotation, *paths) for part in path.parts}
    common = [len(about & set(image.parts)) for image in found]
    best = [image for image, number in zip(found, common, strict=True) if number == max(common)]
    name = " or ".join(dict.fromkeys(map(str, paths)))
    if not best:
        raise UserError(f"{annotation}: no image {name} below the folder of images")
    if len(best) > 1:
        raise UserError(f"{annotation}: image {name} may be {best[0]} or {best[1]}")
    return best[0]


def _files(path: Path, suffix: str = "") -> list[Path]:
    """A file, or those below a folder, by name; of CSV files those that hold boxes."""
    found = path.rglob("*") if path.is_dir() else [path]
    found = (f for f in found if f.name[0] != "." and f.name.lower().endswith(suffix))
    files = sorted(f for f in found if f.is_file())
    return [f for f in files if suffix != ".csv" or f == path or has_box_columns(f)]


def _detect_format(path: Path) -> str:
    def first_holds(suffix: str, text: bytes) -> bool:
        files = _files(path, suffix)
        return bool(files) and text in files[0].read_bytes()[:5000]

    cvat = first_holds(".xml", b"<annotations>")
    labels = [f for f in _files(path, ".txt") if f.name in CLASS_LISTS or "labels" in f.parts]
    signs = {
        "voc": not cvat and first_holds(".xml", b"<annotation"),
        "labelme": first_holds(".json", b'"shapes"'),
        "cvat": cvat,
        "csv": bool(_files(path, ".csv")),
        "yolo": bool(labels or _read_yaml(path)),
    }
    found = [name for name, sign in signs.items() if sign]
    if len(found) != 1:
        what = " and ".join(found) if found else f"none of {', '.join(signs)}"
        raise UserError(f"{path}: looks like {what}: say which format it is in")
    return found[0]


def _split_lists(lists: Path, files: list[Path], findings: Findings) -> dict[str, list[str]]:
    """The splits of each stem, by Pascal VOC's lists."""
    stems = {file.stem for file in files}
    splits: dict[str, list[str]] = {}
    for path in [p for p in sorted(lists.glob("*.txt")) if p.stem in SPLITS]:
        for name in filter(None, map(str.strip, read_text(path).splitlines())):
            stem = name if name in stems else Path(name).stem
            splits.setdefault(stem, []).append(SPLITS[path.stem])
            if stem not in stems:
                problem = f"lists {name}, which has no annotation file"
                findings.error("split", problem, name, path)
    return splits


def _read_yaml(path: Path) -> dict[str, Any]:
    """YOLO's description of a dataset: ``path``, or the YAML file in it that has ``names``."""
    for file in sorted(path.glob("*.y*ml")) if path.is_dir() else [path] * (".y" in path.suffix):
        with reading(file, "no valid YAML"):
            data = yaml.safe_load(read_text(file))
        if isinstance(data, dict) and "names" in data:
            return data
    return {}


def _yolo_classes(path: Path, data: dict[str, Any]) -> list[str]:
    """The class names of a data.yaml, else of a list of classes, in order."""
    names = data.get("names")
    for file in [f for f in _files(path, ".txt") if f.name in CLASS_LISTS and not data]:
        names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if isinstance(names, dict):
        names = [names.get(k, names.get(str(k))) for k in range(len(names))]
    if not names or isinstance(names, str) or any(type(n) not in (str, int) for n in names):
        raise UserError(
            f"{path}: the names of classes are {names!r:.80}: give a data.yaml with a list of texts"
            " ('yes' and 'no' in quotes), or a classes.txt"
        )
    return [str(name) for name in names]


def _yolo_splits(data: dict[str, Any]) -> dict[str, str]:
    """The splits by the names of folders that a data.yaml gives to one of them alone."""
    names = defaultdict[str, set[str]](set)
    for split in ("train", "val", "test"):
        entries = data.get(split) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            for part in Path(str(entry).lower().removesuffix(".txt")).parts[-2:]:
                names[part].add(split)
    return {
        name: splits.pop()
        for name, splits in names.items()
        if len(splits) == 1 and name not in ("images", "..")
    }


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


def split_off(splits: Splits, share: float, seed: int, group_by: str | None = None) -> Splits:
    """A dataset's only split, with about a share of its images, drawn at random, as ``val``. The
    same seed draws the same.

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
    classes: Sequence[str], splits: Splits, output: Path, description: str
) -> dict[str, Any]:
    """Write ``train.json`` and so on into a folder, all of them or none, and say what was written.
    Classes are 1 to K; file names start from the split's :func:`image_folder`."""
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, 1)]
    written = {}
    with files_written_whole(output) as temporary:
        for split, images in splits.items():
            folder = image_folder(images)
            coco: dict[str, Any] = {
                "info": {"description": description},
                "images": [],
                "annotations": [],
                "categories": categories,
            }
            objects = coco["annotations"]
            for number, (path, (width, height), boxes) in enumerate(images, 1):
                name = path.relative_to(folder).as_posix()
                entry = {"id": number, "file_name": name, "width": width, "height": height}
                coco["images"].append(entry)
                for box in boxes:  # COCO's evaluation miscounts an annotation with id 0
                    objects.append({"id": len(objects) + 1, "image_id": number, **box})
            (temporary / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")
            counts = Counter(each["category_id"] for each in objects)
            written[split] = {
                "json": str(output / f"{split}.json"),
                "image_folder": str(folder),
                "images": len(images),
                "images_without_boxes": sum(not image.objects for image in images),
                "boxes": len(objects),
                "difficult_boxes": sum(each["iscrowd"] for each in objects),
                "classes": {name: counts[k] for k, name in enumerate(classes, 1)},
            }
    return {"classes": classes, "splits": written}
