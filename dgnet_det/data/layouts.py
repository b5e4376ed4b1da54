"""Which files of a dataset are annotations and images, and which split an image is in."""

import os
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml
from PIL import Image
from tqdm import tqdm

from dgnet_det.data.findings import Findings
from dgnet_det.data.formats import FORMATS, READERS, Entry, has_box_columns, read_text, read_yolo
from dgnet_det.errors import UserError

IMAGE_FOLDERS = {"JPEGImages", "images", "Images"}
CLASS_LISTS = ("classes.txt", "obj.names")  # of YOLO
# Splits as Detectron2 names them, by the names of folders and files.
SPLITS = {name: name for name in ("train", "val", "test")} | {
    "training": "train", "valid": "val", "validation": "val", "testing": "test"
}  # fmt: skip


class Labelled(NamedTuple):
    """The split of an image, its file, and what is said of it."""

    split: str
    image: Path
    entry: Entry


def detect_format(path: Path) -> str:
    """The format of a folder, or of a file that has its annotations or describes it.

    Raises:
        UserError: it looks like none, or like several.
    """
    xml = _annotation_files(path, ".xml")[:1]
    json = _annotation_files(path, ".json")[:1]
    signs = {
        "cvat": any(b"<annotations>" in file.read_bytes()[:5000] for file in xml),
        "labelme": any(b'"shapes"' in file.read_bytes()[:5000] for file in json),
        "csv": bool(_annotation_files(path, ".csv")),
        "yolo": bool(_data_yaml(path) or [*path.rglob("labels"), *_class_lists(path)]),
    }
    signs["voc"] = bool(xml) and not signs["cvat"]
    found = [name for name in FORMATS if signs[name]]
    if len(found) != 1:
        what = " and ".join(found) if found else f"none of {', '.join(FORMATS)}"
        raise UserError(f"{path}: looks like {what}: say which format it is in")
    return found[0]


def find_labelled(
    path: Path, layout: str, image_folder: Path | None, findings: Findings
) -> list[Labelled]:
    """The images of a dataset with what is said of them, for all formats but YOLO.

    Annotations and images may lie in any folders below ``path``. The split is what
    ``ImageSets/Main`` says, else CVAT's subset, else what a folder, or a CSV file's name, is called
    after, else ``train``.

    Args:
        path, layout, image_folder: as for :func:`read_dataset`.
        findings: what is wrong is added to these.

    Raises:
        UserError: there are no annotations.
    """
    suffix, read = READERS[layout]
    folder = path if path.is_dir() else path.parent
    files, index = _annotation_files(path, suffix), ImageIndex(image_folder or folder)
    if not files:
        raise UserError(f"{path}: no {suffix} file with boxes: name the folder that has them")
    lists = _split_lists(folder / "ImageSets" / "Main", files, findings)
    labelled = []
    for file in tqdm(files, desc=folder.name, unit="file"):
        try:
            entries = read(file)
        except UserError as error:
            findings.error("label", error, file.name)
            continue
        words = re.split(r"[^a-zA-Z]+", file.stem) if suffix == ".csv" else []
        for entry in entries:
            image = index.find(entry, findings)
            if image is not None:
                parts = image.relative_to(index.folder).parts + file.relative_to(folder).parts
                splits = [_split_in([entry.split, *parts, *words])]
                for split in lists.get(file.stem, []) if lists else splits:
                    labelled.append(Labelled(split, image, entry))
    for image in index.unused():
        problem = "no annotation: left out; give it one without objects if nothing is on it"
        findings.warning("no-label", problem, image.name, image)
    return labelled


class ImageIndex:
    """The image files below a folder, which are found by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.by_stem, self.used = folder, dict[str, list[Path]](), set[Path]()
        files = images_in(folder)
        inside = [f for f in files if IMAGE_FOLDERS & set(f.relative_to(folder).parts)]
        for file in inside or files:
            self.by_stem.setdefault(file.stem, []).append(file)

    def find(self, entry: Entry, findings: Findings) -> Path | None:
        """An entry's file: of those that have the stem of its first name, else of the next, the one
        whose path ends like most of a name, and that lies nearest to the annotation."""
        suffixes = Image.registered_extensions()
        names = [PurePosixPath(name.replace("\\", "/")) for name in entry.names if name]
        stems = [n.stem if n.suffix.lower() in suffixes else n.name for n in names]
        found = next((self.by_stem[stem] for stem in stems if stem in self.by_stem), [])
        places = set(entry.file.parent.parts)
        rank = [
            (max(_common_end(f, name) for name in names), len(places & set(f.parent.parts)))
            for f in found
        ]
        best = [file for file, each in zip(found, rank, strict=True) if each == max(rank)]
        self.used.update(best)
        if len(best) == 1:
            return best[0]
        name = " or ".join(dict.fromkeys(map(str, names)))
        problem = f"no image {name} in {self.folder}"
        if best:
            problem = f"image {name} may be {best[0]} or {best[1]}: write its folder and ending"
        findings.error("image", problem, name, entry.file)
        return None

    def unused(self) -> list[Path]:
        """The files that :meth:`find` did not return, by name."""
        return sorted(set().union(*self.by_stem.values()) - self.used)


def images_in(folder: Path) -> list[Path]:
    """The image files below a folder, by name."""
    suffixes = Image.registered_extensions()
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in suffixes and f.is_file())


def find_yolo(
    path: Path, classes: Sequence[str], findings: Findings
) -> tuple[list[str], list[Labelled]]:
    """The classes of a YOLO dataset, and its images with what is said of them.

    A ``data.yaml`` tells the classes, and the splits as folders of images or lists of their paths.
    Without, classes are ``classes`` or those of a ``classes.txt``, and a split is what a folder is
    called after. The labels of ``…/images/…/a.jpg`` are in ``…/labels/…/a.txt``, else beside the
    image. An image without a label file has no objects.

    Raises:
        UserError: the classes or the images are not told.
    """
    file = _data_yaml(path)
    data = _read_yaml(file) if file else {}
    if file and classes:
        raise UserError(f"{file}: has the classes: leave out your own")
    names = _yaml_classes(file, data) if file else list(classes) or _listed_classes(path)
    if file:
        images = _yaml_images(file, data, findings)
    else:
        images = [(_split_in(f.relative_to(path).parts), f) for f in images_in(path)]
    labels = {image: _label_file(image) for _, image in images}
    if not any(label.is_file() for label in labels.values()):
        label = next(iter(labels.values()), path / "images")
        raise UserError(f"{path}: no image has a label file: looked for {label} and so on")
    labelled = []
    for split, image in tqdm(images, desc=path.name, unit="file"):
        entry = Entry(labels[image], (), [])
        try:
            if entry.file.is_file():
                entry = read_yolo(entry.file, names, keypoints="kpt_shape" in data)
            else:
                problem = "no label file: taken for an image without objects"
                findings.warning("no-label", problem, image.name, image)
        except UserError as error:
            findings.error("label", error, entry.file.name)
        labelled.append(Labelled(split, image, entry))
    for folder in {label.parent for label in labels.values() if "labels" in label.parts}:
        for label in sorted(set(folder.glob("*.txt")) - set(labels.values())):
            if label.name not in CLASS_LISTS:
                problem = "no image of this name: add it, or take the label file away"
                findings.error("image", problem, label.name, label)
    return names, labelled


def _common_end(file: Path, name: PurePosixPath) -> int:
    pairs = zip(reversed(file.parts), reversed(name.parts), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _split_in(names: Iterable[str]) -> str:
    return next((SPLITS[name.lower()] for name in names if name.lower() in SPLITS), "train")


def _annotation_files(path: Path, suffix: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == suffix else []
    files = sorted(path.rglob(f"*{suffix}"))
    return [file for file in files if suffix != ".csv" or has_box_columns(file)]


def _split_lists(lists: Path, files: list[Path], findings: Findings) -> dict[str, list[str]]:
    """The splits of each stem, by Pascal VOC's lists."""
    stems = {file.stem for file in files}
    splits: dict[str, list[str]] = {}
    for path in sorted(lists.glob("*.txt")):
        for line in read_text(path).splitlines() if path.stem in SPLITS else ():
            name = line.strip()
            stem = name if name in stems else Path(name).stem
            if stem in stems:
                splits.setdefault(stem, []).append(SPLITS[path.stem])
            elif name:
                problem = f"lists {name}, which has no annotation file"
                findings.error("split", problem, name, path)
    return splits


def _label_file(image: Path) -> Path:
    """The YOLO label file of an image, which need not exist."""
    beside = image.with_suffix(".txt")
    head, images, tail = beside.as_posix().rpartition("/images/")
    return Path(f"{head}/labels/{tail}") if images and not beside.is_file() else beside


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


def _class_lists(path: Path) -> list[Path]:
    return [file for name in CLASS_LISTS for file in sorted(path.rglob(name))]


def _listed_classes(path: Path) -> list[str]:
    for file in _class_lists(path):
        return [line.strip() for line in read_text(file).splitlines() if line.strip()]
    raise UserError(
        f"{path}: neither a data.yaml with names nor a classes.txt: give the classes in order"
    )


def _yaml_images(path: Path, data: dict[str, Any], findings: Findings) -> list[tuple[str, Path]]:
    """The images of a data.yaml with their splits."""
    base = path.parent / str(data.get("path") or "")
    if not base.is_dir():  # a path of the machine that it was made on
        base = path.parent
    images: list[tuple[str, Path]] = []
    for split in ("train", "val", "test"):
        entries = data.get(split) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            # Some exports count "../" from a folder that is not there.
            places = [Path(os.path.normpath(base / e)) for e in (entry, entry.removeprefix("../"))]
            place = next((place for place in places if place.exists()), places[0])
            found = images_in(place)
            if place.is_file():
                lines = read_text(place).split("\n")
                names = [place.parent / line.strip() for line in lines if line.strip()]
                found = [Path(os.path.normpath(name)) for name in names]
            if not found:
                report = findings.warning if split == "test" else findings.error
                report("split", f"{split}: no image in {place}", split, path)
            images += [(split, image) for image in found]
    findings.raise_first_error()
    if not images:
        raise UserError(f"{path}: neither train nor val: name the folders of the images")
    return images
