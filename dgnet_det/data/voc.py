"""Pascal VOC: an XML file for each image.

Its coordinates are pixel numbers from 1, both ends in the box: (1, 1, W, H) is the whole image.
Many tools write edges counted from 0 under the same names. A coordinate of 0, which Pascal VOC
cannot have, tells them apart; else Pascal VOC's meaning is taken, as Detectron2 does.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from dgnet_det.data.findings import Findings
from dgnet_det.data.raw import (
    SPLIT_NAMES,
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

ANNOTATION_FOLDERS = ("Annotations", "annotations")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
SPLIT_LISTS = Path("ImageSets") / "Main"


class VocFile(NamedTuple):
    """An XML file.

    Attributes:
        file_name: of its image, as the file says; may be empty.
        size: width and height as the file says; zeros where it does not.
        names: of the objects' classes.
        corners: xmin, ymin, xmax and ymax of each object, as they are in the file.
        difficult: for each object, whether it is marked so.
    """

    file_name: str
    size: tuple[int, int]
    names: list[str]
    corners: list[tuple[float, float, float, float]]
    difficult: list[bool]


def read_voc_file(path: Path) -> VocFile:
    """Read an XML file.

    Raises:
        UserError: it is no such file, or an object has no name or no box with xmin ≤ xmax and
            ymin ≤ ymax.
    """
    globox = import_globox()
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise UserError(f"{path}: cannot be read as Pascal VOC XML: {error}") from error
    if root.tag != "annotation":
        raise UserError(f"{path}: no Pascal VOC XML: it holds <{root.tag}>, not <annotation>")
    names, corners, difficult = [], [], []
    for number, node in enumerate(root.findall("object"), 1):
        try:
            box = globox.BoundingBox.from_xml(node)
        except AssertionError as error:
            raise UserError(
                f"{path}: object {number}: not xmin ≤ xmax and ymin ≤ ymax: correct its box"
            ) from error
        except (globox.ParsingError, ValueError) as error:
            raise UserError(
                f"{path}: object {number}: no name, or no bndbox with xmin, ymin, xmax and ymax"
            ) from error
        if not box.label.strip():
            raise UserError(f"{path}: object {number}: its name is empty")
        names.append(box.label.strip())
        corners.append(box.ltrb)
        difficult.append(node.findtext("difficult", "0").strip() == "1")
    try:
        size = tuple(int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except ValueError as error:
        raise UserError(f"{path}: the size is no number: correct it or take it out") from error
    file_name = (root.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1]
    return VocFile(file_name, (size[0], size[1]), names, corners, difficult)


def has_voc(folder: Path) -> bool:
    """Whether a folder holds a dataset of this format."""
    places = [*(folder / name for name in ANNOTATION_FOLDERS), folder, *folder.glob("*/")]
    return any(next(place.glob("*.xml"), None) for place in places)


def read_voc(
    folder: Path,
    findings: Findings,
    images: Path | None = None,
    classes: Sequence[str] = (),
    origin: int | None = None,
) -> RawDataset:
    """Read a dataset.

    The layouts: ``Annotations`` and ``JPEGImages`` (or ``images``), split by the lists in
    ``ImageSets/Main`` where there are any; XML files beside the images; a folder for each split
    with XML files beside the images.

    Args:
        folder: of the dataset.
        findings: what is wrong is added to these.
        images: the folder of the images, where it is not one of the above.
        classes: the classes in order. Empty: those of the data, by name.
        origin: 1 where coordinates count pixels from 1, 0 where they are edges from 0. None: found
            as at the top of this file.

    Raises:
        UserError: the folder has none of these layouts.
    """
    annotations = next((folder / n for n in ANNOTATION_FOLDERS if (folder / n).is_dir()), folder)
    if not any(annotations.glob("*.xml")):
        parts = named(p for p in sorted(folder.glob("*/")) if any(p.glob("*.xml")))
        if not parts:
            raise UserError(f"{annotations}: no XML file: name the folder that has Annotations")
        files = {
            split: _read_folder(part, images or part, findings) for split, part in parts.items()
        }
    else:
        beside = next((folder / n for n in IMAGE_FOLDERS if (folder / n).is_dir()), annotations)
        read = _read_folder(annotations, images or beside, findings)
        files = _split(read, folder / SPLIT_LISTS, findings)
    findings.raise_first_error()

    everything = [file for split in files.values() for file, _ in split.values()]
    found = sorted({name for file in everything for name in file.names})
    for name in found:
        if classes and name not in classes:
            findings.error("class", str(folder), f"class {name!r} is not among --classes", name)
    if origin is None:
        least = min((c[k] for f in everything for c in f.corners for k in (0, 1)), default=1)
        origin = 1 if least >= 1 else 0
    return RawDataset(
        list(classes) or found,
        {
            split: RawSplit(
                images or _folder_of(read),
                [
                    _raw_image(file, image, origin, folder, findings)
                    for file, image in read.values()
                ],
            )
            for split, read in files.items()
        },
    )


VocFiles = dict[str, tuple[VocFile, Path]]  # XML files and their images by the XML's stem


def _folder_of(files: VocFiles) -> Path:
    return next(image.parent for _, image in files.values())


def _read_folder(annotations: Path, images: Path, findings: Findings) -> VocFiles:
    """The XML files of a folder, with the image of each."""
    by_stem: dict[str, list[Path]] = {}
    for image in images_in(images):
        by_stem.setdefault(image.stem, []).append(image)
    files: VocFiles = {}
    for path in tqdm(sorted(annotations.glob("*.xml")), desc=annotations.name, unit="file"):
        try:
            file = read_voc_file(path)
        except UserError as error:
            findings.raised("voc", str(annotations), error, path.name)
            continue
        candidates = by_stem.get(path.stem) or by_stem.get(Path(file.file_name).stem, [])
        if not candidates:
            problem = f"no image {path.stem} or {file.file_name or '<filename>'} in {images}"
            findings.error("no-image", str(annotations), problem, path.name, str(path))
            continue
        named_so = [image for image in candidates if image.name == file.file_name]
        files[path.stem] = file, (named_so or candidates)[0]
    used = {image for _, image in files.values()}
    for stem, candidates in by_stem.items():
        if not used.intersection(candidates):
            problem = "no XML file: left out; give it one without objects if nothing is on it"
            findings.warning("no-xml", str(images), problem, stem, str(candidates[0]))
    return files


def _split(files: VocFiles, lists: Path, findings: Findings) -> dict[str, VocFiles]:
    """The files by split. Lists of two columns, which VOC has for each class, are passed over."""
    splits: dict[str, list[str]] = {}
    for path in sorted(lists.glob("*.txt")):
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        if any(lines) and all(len(line) < 2 for line in lines):
            name = SPLIT_NAMES.get(path.stem.lower(), path.stem.lower())
            splits[name] = [line[0] for line in lines if line]
    if {"train", "val"} <= splits.keys():
        splits.pop("trainval", None)
    if not splits:
        return {"train": files}
    chosen: dict[str, VocFiles] = {}
    for name, stems in splits.items():
        chosen[name] = {}
        for stem in stems:
            stem = stem if stem in files else Path(stem).stem
            if stem in files:
                chosen[name][stem] = files[stem]
            else:
                problem = f"lists {stem}, which has no XML file"
                findings.error("split", str(lists), problem, stem, str(lists / f"{name}.txt"))
    return chosen


def _raw_image(
    file: VocFile, image: Path, origin: int, folder: Path, findings: Findings
) -> RawImage:
    try:
        size = upright_size(image)
    except UserError as error:
        findings.raised("image", str(folder), error, image.name)
        return RawImage(image, (0, 0), [])
    if all(file.size) and file.size != size:
        problem = (
            f"the image has {size[0]} × {size[1]} pixels, its XML says {file.size[0]} ×"
            f" {file.size[1]}: see that the boxes fit"
        )
        findings.warning("size", str(folder), problem, image.name, str(image))
    boxes = [
        Box(name, (x0 - origin, y0 - origin, x1 - x0 + origin, y1 - y0 + origin), crowd)
        for name, (x0, y0, x1, y1), crowd in zip(*file[2:], strict=True)
    ]
    return RawImage(image, size, boxes)
