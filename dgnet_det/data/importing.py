"""Datasets in the formats of labelling tools become COCO JSON; images stay where they are."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from dgnet_det.data.findings import Findings, first_few
from dgnet_det.data.formats import READERS, Box, Entry, has_box_columns, read_text, read_yolo
from dgnet_det.data.images import reading, upright_size
from dgnet_det.errors import UserError
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

    Annotations and images may lie in any folders. The split of an image is what ``ImageSets/Main``
    says, else CVAT's subset, else what a folder, or a CSV file, is called after, else ``train``.
    Boxes that are marked difficult get COCO's ``iscrowd`` 1: training leaves them out, and
    evaluation neither asks for them nor counts a detection there as false.

    Args:
        path: the folder, or the file that has the annotations or describes it.
        findings: what may be wrong is added to these.
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
    read, names, split_names = READERS[layout][1], list(classes), SPLITS
    if layout == "yolo":
        data = _read_yaml(path)
        names, split_names = names or _yolo_classes(path, data), SPLITS | _yolo_splits(data)
        read = partial(read_yolo, classes=names, keypoints="kpt_shape" in data)
    labelled = _find_labelled(path, layout, read, split_names, images, findings)
    findings.raise_first_error()
    boxes = [box for _, _, entry in labelled for box in entry.boxes]
    names = names or sorted({box.name for box in boxes})
    if not boxes:
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
            with reading(image), Image.open(image) as picture:
                size = upright_size(picture)
        except UserError as error:
            findings.error("image", error, image.name)
        else:
            scale = size if entry.fractions else (1, 1)
            objects = [_annotation(box, names, scale, origin) for box in entry.boxes]
            splits.setdefault(split, []).append(LabelledImage(image, size, objects))
    findings.raise_first_error()
    return Dataset(names, splits)


def _find_labelled(
    path: Path,
    layout: str,
    read: Callable[[Path], Iterable[Entry]],
    split_names: Mapping[str, str],
    image_folder: Path | None,
    findings: Findings,
) -> list[tuple[str, Path, Entry]]:
    """The images of a dataset, each with its split before it and what is said of it behind it.
    Where nothing else tells the split, the names of folders do."""
    folder, suffix = path if path.is_dir() else path.parent, READERS[layout][0]
    index = _ImageIndex(image_folder or folder)
    files = [path] if path.suffix == suffix else _files(folder, suffix)
    if layout == "yolo":
        files = [f for f in files if f.stem in index.by_stem or "labels" in f.parts]
        files = [f for f in files if f.name not in CLASS_LISTS]
    if not files:
        raise UserError(f"{path}: no {suffix} file with boxes: name the folder that has them")
    lists = _split_lists(folder / "ImageSets" / "Main", files, findings)
    labelled = []
    for file in tqdm(files, desc=folder.name, unit="file"):
        try:
            for entry in read(file):
                image = index.find(entry.names, file)
                parts = [*image.relative_to(index.folder).parts, *file.relative_to(folder).parts]
                words = re.split("[^a-zA-Z]", file.stem) if layout == "csv" else []
                told = [name.lower() for name in (entry.split, *parts, *words)]
                splits = [split_names[name] for name in told if name in split_names][:1]
                for split in lists.get(file.stem, []) if lists else splits or ["train"]:
                    labelled.append((split, image, entry))
                if entry.left_out:
                    problem = f"has {first_few(entry.left_out)}: only boxes and polygons are taken"
                    findings.warning("shape", problem, image.name, file)
        except UserError as error:
            findings.error("label", error, file.name)
    for image in index.unused():
        problem = "no annotation: left out; give it one without objects if nothing is on it"
        if layout == "yolo":
            problem = "no label file: taken for an image without objects"
            parts = [*image.relative_to(index.folder).parts, "train"]
            split = next(split_names[n.lower()] for n in parts if n.lower() in split_names)
            labelled.append((split, image, Entry((), [])))
        findings.warning("no-label", problem, image.name, image)
    return sorted(labelled, key=lambda each: each[1])


class _ImageIndex:
    """The image files below a folder, which are found by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.by_stem, self.used = folder, dict[str, list[Path]](), set[Path]()
        self.suffixes = Image.registered_extensions()
        files = [f for f in _files(folder) if f.suffix.lower() in self.suffixes]
        inside = [f for f in files if IMAGE_FOLDERS & set(f.relative_to(folder).parts)]
        for file in inside or files:
            self.by_stem.setdefault(file.stem, []).append(file)

    def find(self, names: Sequence[str], annotation: Path) -> Path:
        """The file that has the stem of the first name, else of the next; of several, the one whose
        path ends like most of a name, and that lies nearest to the annotation."""
        paths = [PurePosixPath(name.replace("\\", "/")) for name in names if name]
        stems = [p.stem if p.suffix.lower() in self.suffixes else p.name for p in paths]
        found = next((self.by_stem[stem] for stem in stems if stem in self.by_stem), [])
        near = set(annotation.parent.parts)
        rank = [
            (max(_common_end(f, p) for p in paths), len(near & set(f.parent.parts))) for f in found
        ]
        best = [file for file, each in zip(found, rank, strict=True) if each == max(rank)]
        self.used.update(best)
        name = " or ".join(dict.fromkeys(map(str, paths)))
        if not best:
            raise UserError(f"{annotation}: no image {name} in {self.folder}")
        if len(best) > 1:
            raise UserError(f"{annotation}: image {name} may be {best[0]} or {best[1]}")
        return best[0]

    def unused(self) -> list[Path]:
        """The files that :meth:`find` did not return, by name."""
        return sorted(set().union(*self.by_stem.values()) - self.used)


def _common_end(file: Path, name: PurePosixPath) -> int:
    pairs = zip(reversed(file.parts), reversed(name.parts), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _files(folder: Path, suffix: str = "") -> list[Path]:
    """The files below a folder, by name; of CSV files those that hold boxes."""
    files = [f for f in sorted(folder.rglob(f"*{suffix}")) if f.is_file() and f.name[0] != "."]
    return [file for file in files if suffix != ".csv" or has_box_columns(file)]


def _detect_format(path: Path) -> str:
    files = {suffix: _files(path, suffix) for suffix in (".xml", ".json", ".csv", ".txt")}
    if path.is_file():
        files = {suffix: [path] * (path.suffix == suffix) for suffix in files}
    starts = {suffix: found[0].read_bytes()[:5000] for suffix, found in files.items() if found}
    labels = [f for f in files[".txt"] if f.name in CLASS_LISTS or "labels" in f.parts]
    signs = {
        "voc": b"<annotations>" not in starts.get(".xml", b"<annotations>"),
        "labelme": b'"shapes"' in starts.get(".json", b""),
        "cvat": b"<annotations>" in starts.get(".xml", b""),
        "csv": bool(files[".csv"]),
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
        for name in read_text(path).split():
            stem = name if name in stems else Path(name).stem
            splits.setdefault(stem, []).append(SPLITS[path.stem])
            if stem not in stems:
                problem = f"lists {name}, which has no annotation file"
                findings.error("split", problem, name, path)
    return splits


def _read_yaml(path: Path) -> dict[str, Any]:
    """YOLO's description of a dataset: ``path``, or the YAML file in it that has ``names``."""
    for file in sorted(path.glob("*.y*ml")) if path.is_dir() else [path] * (".y" in path.suffix):
        try:
            data = yaml.safe_load(read_text(file))
        except yaml.YAMLError as error:
            raise UserError(f"{file}: no valid YAML: {' '.join(str(error).split())}") from error
        if isinstance(data, dict) and "names" in data:
            return data
    return {}


def _yolo_classes(path: Path, data: dict[str, Any]) -> list[str]:
    """The class names of a data.yaml, else of a list of classes, in order."""
    names = data.get("names")
    for file in [f for f in _files(path, ".txt") if f.name in CLASS_LISTS and not data]:
        names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        names = [numbered.get(str(k)) for k in range(len(numbered))]
    if not isinstance(names, list) or not names:
        raise UserError(
            f"{path}: neither a data.yaml with a list of names nor a classes.txt: give the classes"
        )
    for number, name in enumerate(names):
        if not isinstance(name, (str, int)) or isinstance(name, bool):
            raise UserError(f"{path}: class {number} of names is {name!r}: give a text, in quotes")
    return [str(name) for name in names]


def _yolo_splits(data: dict[str, Any]) -> dict[str, str]:
    """The splits by the names of folders that a data.yaml gives to them."""
    names: dict[str, str] = {}
    for split in ("test", "val", "train"):
        entries = data.get(split) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            parts = Path(str(entry).lower().removesuffix(".txt")).parts
            names |= {part: split for part in parts[-2:] if part not in ("images", "..")}
    return names


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
