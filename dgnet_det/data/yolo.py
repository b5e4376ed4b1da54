"""YOLO: a text file for each image, a line for each object: class number from 0, then the centre's
x and y, width and height as fractions of the image.

Polygons (class number, then x and y of each corner) are taken as the boxes around them, and a sixth
number after a box, a detector's confidence, is passed over.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from dgnet_det.data.coco_checks import FRACTION_LIMIT
from dgnet_det.data.findings import Findings
from dgnet_det.data.raw import (
    Box,
    RawDataset,
    RawImage,
    RawSplit,
    images_in,
    import_globox,
    named,
    upright_size,
)
from dgnet_det.errors import UserError

CLASS_LISTS = ("classes.txt", "obj.names")
SPLIT_KEYS = ("train", "val", "test")


def find_data_yaml(folder: Path) -> Path | None:
    """The YAML file that describes a dataset: the one in a folder that has ``names``."""
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        if "names" in _read_yaml(path):
            return path
    return None


def has_yolo(folder: Path) -> bool:
    """Whether a folder holds a dataset of this format."""
    if find_data_yaml(folder) or any((folder / name).is_file() for name in CLASS_LISTS):
        return True
    return any(next(folder.glob(pattern), None) for pattern in ("labels", "*/labels"))


def read_yolo(folder: Path, findings: Findings, classes: Sequence[str] = ()) -> RawDataset:
    """Read a dataset.

    With a ``data.yaml``, it tells the splits (folders of images, or lists of their paths) and the
    classes. Without, the splits are the folders in ``images``, or those that have ``images`` in
    them, and the classes come from ``classes``, or from ``classes.txt`` in the folder or beside the
    labels. The labels of ``…/images/…/a.jpg`` are in ``…/labels/…/a.txt``, else beside the image.
    An image without a label file has no objects.

    Args:
        folder: of the dataset, or its ``data.yaml``.
        findings: what is wrong is added to these.
        classes: the classes in order.

    Raises:
        UserError: the classes or the images cannot be found.
    """
    data_yaml = folder if folder.is_file() else find_data_yaml(folder)
    keypoints = False
    if data_yaml:
        data = _read_yaml(data_yaml)
        if classes:
            raise UserError(f"{data_yaml}: has the classes: leave out --classes")
        classes, keypoints = _names(data_yaml, data.get("names")), "kpt_shape" in data
        images = _yaml_splits(data_yaml, data, findings)
    else:
        classes = list(classes) or _listed_classes(folder)
        images = _folder_splits(folder)
    splits = {}
    for split, paths in images.items():
        read = [
            _read_image(path, classes, keypoints, folder, findings)
            for path in tqdm(paths, desc=split, unit="image")
        ]
        common = Path(os.path.commonpath([path.parent for path in paths]))
        splits[split] = RawSplit(common, read)
    _check_labels([path for paths in images.values() for path in paths], folder, findings)
    return RawDataset(list(classes), splits)


def label_file(image: Path) -> Path:
    """The label file of an image, which need not exist."""
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("images")
        apart = Path(*parts[:last], "labels", *parts[last + 1 :])
        if apart.is_file() or not beside.is_file():
            return apart
    return beside


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    return data if isinstance(data, dict) else {}


def _names(path: Path, names: Any) -> list[str]:
    """The class names of a data.yaml, in order."""
    if isinstance(names, dict):
        by_number = {str(key): name for key, name in names.items()}
        if by_number.keys() != {str(k) for k in range(len(names))}:
            raise UserError(f"{path}: names: number the classes from 0 without gaps")
        names = [by_number[str(k)] for k in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: names: no list of class names")
    for name in names:
        if not isinstance(name, (str, int)) or isinstance(name, bool):
            raise UserError(f"{path}: names: {name!r} is no text to YAML: put it in quotes")
    return [str(name) for name in names]


def _listed_classes(folder: Path) -> list[str]:
    for place in (folder, folder / "labels"):
        for name in CLASS_LISTS:
            if (place / name).is_file():
                lines = (place / name).read_text(encoding="utf-8-sig").splitlines()
                return [line.strip() for line in lines if line.strip()]
    raise UserError(
        f"{folder}: neither a data.yaml with names nor a classes.txt: give the class names in"
        " order with --classes"
    )


def _yaml_splits(path: Path, data: dict[str, Any], findings: Findings) -> dict[str, list[Path]]:
    """The images of each split of a data.yaml."""
    base = path.parent / str(data.get("path") or "")
    if not base.is_dir():  # a path of the machine that it was made on
        base = path.parent
    splits: dict[str, list[Path]] = {}
    for split in SPLIT_KEYS:
        entries = data.get(split) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            # Some exports count "../" from a folder that is not there.
            places = [Path(os.path.normpath(base / e)) for e in (entry, entry.removeprefix("../"))]
            place = next((place for place in places if place.exists()), None)
            if place is None:
                report = findings.warning if split == "test" else findings.error
                problem = f"{split}: no such folder or list: {places[0]}"
                report("split", str(path), problem, split)
                continue
            found = images_in(place, recursive=True) if place.is_dir() else _listed_images(place)
            splits.setdefault(split, []).extend(found)
            if not found:
                findings.error("split", str(path), f"{split}: no image in {place}", split)
    findings.raise_first_error()
    if not splits:
        raise UserError(f"{path}: neither train nor val: name the folders of the images")
    return splits


def _listed_images(path: Path) -> list[Path]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    return [Path(os.path.normpath(path.parent / name)) for name in names]


def _folder_splits(folder: Path) -> dict[str, list[Path]]:
    """The images of each split of a dataset without a data.yaml."""
    top = folder / "images"
    parts = named(sorted(top.glob("*/"))) or {
        name: part / "images"
        for name, part in named(sorted(folder.glob("*/"))).items()
        if (part / "images").is_dir()
    }
    if not parts:
        parts = {"train": top if top.is_dir() else folder}
    splits = {name: images_in(part, recursive=True) for name, part in parts.items()}
    splits = {name: images for name, images in splits.items() if images}
    if not splits:
        raise UserError(f"{folder}: no image here or in {top}")
    return splits


def _read_image(
    path: Path, classes: Sequence[str], keypoints: bool, folder: Path, findings: Findings
) -> RawImage:
    try:
        size = upright_size(path)
    except UserError as error:
        findings.raised("image", str(folder), error, path.name)
        return RawImage(path, (0, 0), [])
    label = label_file(path)
    if not label.is_file():
        return RawImage(path, size, [])
    boxes = []
    try:
        lines = label.read_text(encoding="utf-8-sig").splitlines()
    except ValueError:
        findings.error("label", str(folder), "no text file", label.name, str(label))
        lines = []
    for number, line in enumerate(lines, 1):
        values = line.split()
        if not values:
            continue
        try:
            boxes.append(_read_box(values[:5] if keypoints else values, size, classes))
        except UserError as error:
            problem = f"line {number}, {line.strip()[:60]!r}: {error}"
            findings.error("label", str(folder), problem, label.name, str(label))
    return RawImage(path, size, boxes)


def _read_box(values: list[str], size: tuple[int, int], classes: Sequence[str]) -> Box:
    globox = import_globox()
    try:
        if len(values) <= 6:
            box = globox.BoundingBox.from_yolo_v5(" ".join(values[:5]), image_size=size)
        else:
            box = globox.BoundingBox.from_yolo_seg(" ".join(values), image_size=size)
        label = float(values[0])
        fractions = [abs(float(value)) for value in values[1:]]
    except AssertionError as error:
        raise UserError("width and height must be numbers of at least 0") from error
    except (globox.ParsingError, ValueError) as error:
        raise UserError(
            "no class number with centre x, centre y, width and height, or with a polygon"
        ) from error
    if not all(fraction <= FRACTION_LIMIT for fraction in fractions):
        raise UserError("not fractions of the image: divide by its width and height")
    if not 0 <= label < len(classes) or label != int(label):
        raise UserError(f"class {values[0]}: there are {len(classes)} classes, numbered from 0")
    return Box(classes[int(label)], box.ltwh)


def _check_labels(images: Sequence[Path], folder: Path, findings: Findings) -> None:
    """Check that label files belong to images, and the other way about."""
    labels = {label_file(image): image for image in images}
    missing = [image for label, image in labels.items() if not label.is_file()]
    if len(missing) == len(labels):
        problem = f"no image has a label file: looked for {label_file(missing[0])} and so on"
        findings.error("no-labels", str(folder), problem)
        return
    for image in missing:
        problem = "no label file: taken for an image without objects"
        findings.warning("no-label", str(folder), problem, image.name, str(image))
    for place in {label.parent for label in labels if "labels" in label.parts}:
        for path in sorted(place.glob("*.txt")):
            if path not in labels and path.name not in CLASS_LISTS:
                problem = "no image of this name: add it, or take the label file away"
                findings.error("no-image", str(folder), problem, path.name, str(path))
