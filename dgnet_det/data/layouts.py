"""Which files of a dataset are annotations, images and splits, in each tool's layout."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml
from PIL import Image
from tqdm import tqdm

from dgnet_det.data.findings import Findings
from dgnet_det.data.formats import (
    HEADERLESS,
    Entry,
    csv_columns,
    read_csv,
    read_cvat,
    read_labelme,
    read_text,
    read_voc,
    read_yolo,
)
from dgnet_det.errors import UserError

ANNOTATION_FOLDERS = ("Annotations", "annotations", ".")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
SPLIT_LISTS = Path("ImageSets") / "Main"  # of Pascal VOC
CLASS_LISTS = ("classes.txt", "obj.names")  # of YOLO
# Splits are named as Detectron2 names them.
SPLIT_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
SPLITS = ("train", "val", "test")


class Layout(NamedTuple):
    """Of a format other than YOLO.

    Attributes:
        suffix: of the annotation files.
        sign: bytes near the beginning of such a file.
        read: gives the entries of a file.
    """

    suffix: str
    sign: bytes
    read: Callable[[Path], list[Entry]]


LAYOUTS = {
    "voc": Layout(".xml", b"", read_voc),
    "labelme": Layout(".json", b'"shapes"', read_labelme),
    "cvat": Layout(".xml", b"<annotations>", read_cvat),
    "csv": Layout(".csv", b"", read_csv),
}
FILE_PER_IMAGE = ("voc", "labelme")
FORMATS = (*LAYOUTS, "yolo")


class Labelled(NamedTuple):
    """An image file, what is said of it, and the split that it is in."""

    split: str
    image: Path
    entry: Entry


def detect_format(path: Path) -> str:
    """The format of a folder, or of a file in it that has all annotations.

    Raises:
        UserError: it looks like none or several.
    """
    found = ["yolo"] if _data_yaml(path) or _has_yolo_folders(path) else []
    for name, layout in LAYOUTS.items():
        first = next(iter(_parts(path, layout).values()), [path])[0]
        if first.suffix == layout.suffix and layout.sign in first.read_bytes()[:5000]:
            found.append(name)
    if "cvat" in found:
        found.remove("voc")  # any other XML
    if len(found) != 1:
        what = " and ".join(found) if found else f"none of {', '.join(FORMATS)}"
        raise UserError(f"{path}: looks like {what}: say which format it is in")
    return found[0]


def find_labelled(
    path: Path, name: str, findings: Findings, image_folder: Path | None = None
) -> Iterator[Labelled]:
    """The images of a dataset in one of ``LAYOUTS``, with what is said of them.

    The annotations are in the folder or in ``Annotations`` there, the images in ``JPEGImages`` or
    ``images`` there, else beside the annotations; or all that is in a folder for each split. Splits
    are also told by ``ImageSets/Main``, by CVAT's subsets and by the names of CSV files.

    Args:
        path: the folder, or an annotation file.
        name: of the format.
        findings: what is wrong is added to these.
        image_folder: the folder of the images, where it is another.

    Raises:
        UserError: there is no annotation file.
    """
    layout, parts = LAYOUTS[name], _parts(path, LAYOUTS[name])
    if not parts:
        raise UserError(f"{path}: no {layout.suffix} file here or in Annotations: name its folder")
    for part, files in parts.items():
        beside = next((part / n for n in IMAGE_FOLDERS if (part / n).is_dir()), files[0].parent)
        images = ImageIndex(image_folder or beside, recursive=name not in FILE_PER_IMAGE)
        lists = _split_lists(part / SPLIT_LISTS, files, findings)
        for file in tqdm(files, desc=part.name, unit="file"):
            try:
                entries = layout.read(file)
            except UserError as error:
                findings.error("label", str(path), error, file.name)
                continue
            for entry in entries:
                image = images.find(entry, str(path), findings)
                told = entry.split or (_split_in(file.stem) if name == "csv" else "")
                splits = [told or ("train" if part == path else part.name)]
                for split in lists.get(file.stem, []) if lists else splits:
                    if image is not None:
                        yield Labelled(_split_name(split), image, entry)
        for file in images.unused():
            problem = "no annotation: left out; give it one without objects if nothing is on it"
            findings.warning("no-label", str(path), problem, file.name, str(file))


class ImageIndex:
    """The image files of a folder, which are found by name."""

    def __init__(self, folder: Path, recursive: bool) -> None:
        self.folder = folder
        self.by_stem: dict[str, list[Path]] = {}
        for file in images_in(folder, recursive):
            self.by_stem.setdefault(file.stem, []).append(file)
        self.used: set[Path] = set()

    def find(self, entry: Entry, path: str, findings: Findings) -> Path | None:
        """An entry's file: of those that have the stem of its first name, else of the next, the one
        whose path ends like most of a name."""
        names = [PurePosixPath(name.replace("\\", "/")) for name in entry.names if name]
        stems = [n.stem if n.suffix.lower() in _suffixes() else n.name for n in names]
        found = next((self.by_stem[stem] for stem in stems if stem in self.by_stem), [])
        alike = [max(_common_end(file, name) for name in names) for file in found]
        best = [file for file, parts in zip(found, alike, strict=True) if parts == max(alike)]
        self.used.update(best)
        name = " or ".join(dict.fromkeys(map(str, names)))
        if len(best) == 1:
            return best[0]
        problem = f"no image {name} in {self.folder}"
        if best:
            problem = f"image {name} may be {best[0]} or {best[1]}: write its folder and ending"
        findings.error("image", path, problem, name, str(entry.file))
        return None

    def unused(self) -> list[Path]:
        """The files that :meth:`find` did not return, by name."""
        return sorted(set().union(*self.by_stem.values()) - self.used)


def images_in(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder, by name."""
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in _suffixes() and path.is_file())


def find_yolo(
    path: Path, findings: Findings, classes: Sequence[str] = ()
) -> tuple[list[str], list[Labelled]]:
    """The classes of a YOLO dataset, and its images with what is said of them.

    A ``data.yaml`` tells the splits (folders of images, or lists of their paths) and the classes.
    Without, the splits are the folders in ``images``, or those that have ``images`` in them, and
    the classes come from ``classes``, or from ``classes.txt`` in the folder or beside the labels.
    The labels of ``…/images/…/a.jpg`` are in ``…/labels/…/a.txt``, else beside the image.
    An image without a label file has no objects.

    Args:
        path: the folder, or its ``data.yaml``.
        findings: what is wrong is added to these.
        classes: the classes in order.

    Raises:
        UserError: the classes or the images cannot be found.
    """
    file = _data_yaml(path)
    data = _read_yaml(file) if file else {}
    if file and classes:
        raise UserError(f"{file}: has the classes: leave out your own")
    names = _yaml_classes(file, data) if file else list(classes) or _listed_classes(path)
    splits = _yaml_splits(file, data, findings) if file else _folder_splits(path)
    images = [(split, image) for split, of_split in splits.items() for image in of_split]
    labels = {image: label_file(image) for _, image in images}
    if not any(label.is_file() for label in labels.values()):
        label = next(iter(labels.values()), path)
        raise UserError(f"{path}: no image has a label file: looked for {label} and so on")
    labelled = []
    for split, image in tqdm(images, desc=path.name, unit="file"):
        label, entry = labels[image], Entry(labels[image], (), [])
        if not label.is_file():
            problem = "no label file: taken for an image without objects"
            findings.warning("no-label", str(path), problem, image.name, str(image))
        else:
            try:
                entry = read_yolo(label, names, keypoints="kpt_shape" in data)
            except UserError as error:
                findings.error("label", str(path), error, label.name)
        labelled.append(Labelled(split, image, entry))
    for folder in {label.parent for label in labels.values() if "labels" in label.parts}:
        for label in sorted(set(folder.glob("*.txt")) - set(labels.values())):
            if label.name not in CLASS_LISTS:
                problem = "no image of this name: add it, or take the label file away"
                findings.error("image", str(path), problem, label.name, str(label))
    return names, labelled


def label_file(image: Path) -> Path:
    """The YOLO label file of an image, which need not exist."""
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("images")
        apart = Path(*parts[:last], "labels", *parts[last + 1 :])
        if apart.is_file() or not beside.is_file():
            return apart
    return beside


def _suffixes() -> dict[str, str]:
    return Image.registered_extensions()


def _common_end(file: Path, name: PurePosixPath) -> int:
    pairs = zip(reversed(file.parts), reversed(name.parts), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _split_name(name: str) -> str:
    return SPLIT_NAMES.get(name.lower(), name.lower())


def _split_in(stem: str) -> str:
    """The split that a file's stem names, such as ``oidv6-train-annotations``."""
    words = map(_split_name, stem.replace("-", "_").split("_"))
    return next((word for word in words if word in SPLITS), "")


def _parts(path: Path, layout: Layout) -> dict[Path, list[Path]]:
    """The annotation files: those of ``path`` itself, else of each folder in it."""
    if path.is_file():
        return {path.parent: [path]} if path.suffix == layout.suffix else {}
    for places in ([path], sorted(path.glob("*/"))):
        parts = {place: _annotation_files(place, layout) for place in places}
        if any(parts.values()):
            break
    return {place: files for place, files in parts.items() if files}


def _annotation_files(place: Path, layout: Layout) -> list[Path]:
    found = [sorted((place / name).glob(f"*{layout.suffix}")) for name in ANNOTATION_FOLDERS]
    if layout.suffix == ".csv":  # where other tables may lie
        found = [[file for file in files if _has_boxes(file)] for files in found]
    return next(filter(None, found), [])


def _has_boxes(file: Path) -> bool:
    return set(HEADERLESS) <= csv_columns(file).keys()


def _split_lists(lists: Path, files: list[Path], findings: Findings) -> dict[str, list[str]]:
    """The splits of each stem, by Pascal VOC's lists. Those of two columns, which it has for each
    class, are passed over."""
    splits: dict[str, list[str]] = {}
    for path in sorted(lists.glob("*.txt")):
        lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
        if lines and all(len(line) == 1 for line in lines):
            splits[_split_name(path.stem)] = [line[0] for line in lines]
    if {"train", "val"} <= splits.keys():
        splits.pop("trainval", None)
    stems = {file.stem for file in files}
    of_stem: dict[str, list[str]] = {}
    for split, names in splits.items():
        for name in names:
            stem = name if name in stems else Path(name).stem
            of_stem.setdefault(stem, []).append(split)
            if stem not in stems:
                problem = f"lists {name}, which has no annotation file"
                findings.error("split", str(lists), problem, name, str(lists / f"{split}.txt"))
    return of_stem


def _has_yolo_folders(path: Path) -> bool:
    found = [path / name for name in CLASS_LISTS] + [*path.glob("labels"), *path.glob("*/labels")]
    return any(place.exists() for place in found)


def _data_yaml(path: Path) -> Path | None:
    """The YAML file that describes a dataset: ``path``, or the one in it that has ``names``."""
    if path.is_file():
        return path if path.suffix in (".yaml", ".yml") else None
    files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    return next((file for file in files if "names" in _read_yaml(file)), None)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    return data if isinstance(data, dict) else {}


def _yaml_classes(path: Path, data: dict[str, Any]) -> list[str]:
    """The class names of a data.yaml, in order."""
    names = data.get("names")
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        names = [numbered.get(str(k)) for k in range(len(numbered))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: names: no list of class names")
    for number, name in enumerate(names):
        if not isinstance(name, (str, int)) or isinstance(name, bool):
            raise UserError(f"{path}: names: class {number} is {name!r}: give a text, in quotes")
    return [str(name) for name in names]


def _listed_classes(folder: Path) -> list[str]:
    lists = [place / name for place in (folder, folder / "labels") for name in CLASS_LISTS]
    for path in filter(Path.is_file, lists):
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    raise UserError(
        f"{folder}: neither a data.yaml with names nor a classes.txt: give the classes in order"
    )


def _yaml_splits(path: Path, data: dict[str, Any], findings: Findings) -> dict[str, list[Path]]:
    """The images of each split of a data.yaml."""
    base = path.parent / str(data.get("path") or "")
    if not base.is_dir():  # a path of the machine that it was made on
        base = path.parent
    splits: dict[str, list[Path]] = {}
    for split in SPLITS:
        entries = data.get(split) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            # Some exports count "../" from a folder that is not there.
            places = [Path(os.path.normpath(base / e)) for e in (entry, entry.removeprefix("../"))]
            place = next((place for place in places if place.exists()), None)
            if place is None:
                report = findings.warning if split == "test" else findings.error
                report("split", str(path), f"{split}: no such folder or list: {places[0]}", split)
            elif place.is_dir():
                splits.setdefault(split, []).extend(images_in(place, recursive=True))
            else:
                lines = [line.strip() for line in read_text(place).splitlines()]
                listed = [Path(os.path.normpath(place.parent / line)) for line in lines if line]
                splits.setdefault(split, []).extend(listed)
    findings.raise_first_error()
    for split, images in splits.items():
        if not images:
            raise UserError(f"{path}: {split}: no image in {data[split]}")
    if not splits:
        raise UserError(f"{path}: neither train nor val: name the folders of the images")
    return splits


def _folder_splits(folder: Path) -> dict[str, list[Path]]:
    """The images of each split of a YOLO dataset without a data.yaml."""
    top = folder / "images"
    parts = {part.name: part for part in sorted(top.glob("*/"))}
    parts = parts or {part.parent.name: part for part in sorted(folder.glob("*/images"))}
    parts = parts or {"train": top if top.is_dir() else folder}
    found = {_split_name(name): images_in(part, recursive=True) for name, part in parts.items()}
    if not any(found.values()):
        raise UserError(f"{folder}: no image here or in {top}")
    return {split: images for split, images in found.items() if images}
