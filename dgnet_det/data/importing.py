"""Datasets in the formats of labelling tools become COCO JSON; images stay where they are."""

import re
import shutil
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dgnet_det.data import yolo
from dgnet_det.data.coco import read_coco, root_categories
from dgnet_det.data.findings import Findings
from dgnet_det.data.formats import (
    READERS,
    Labels,
    coco_id,
    has_box_columns,
    read_annotations,
    read_text,
)
from dgnet_det.data.images import is_image, opened, orientation, stored_size, upright_size
from dgnet_det.data.placing import annotation, place
from dgnet_det.data.writing import LabelledImage, Splits
from dgnet_det.data.yolo import SPLITS, YoloSplits
from dgnet_det.errors import UserError
from dgnet_det.utils.files import folder_written_whole

IMAGE_FOLDERS = {"JPEGImages", "images", "Images"}


# An image, its split, what a file says of it, and that file.
Found = tuple[str, Path, Labels, Path]


@contextmanager
def unpacked(path: Path, output: Path) -> Iterator[Path]:
    """``path``, or of a .zip a folder in ``output`` with what is in it, which is removed if the
    body fails.

    Raises:
        UserError: it is no valid archive.
    """
    if path.suffix.lower() != ".zip":
        yield path
        return
    target, new = output / path.stem, not output.exists()
    try:
        with zipfile.ZipFile(path) as archive, folder_written_whole(target) as fresh:
            archive.extractall(fresh)
        yield target
    except BaseException as error:
        shutil.rmtree(output if new else target, ignore_errors=True)
        if isinstance(error, FileNotFoundError) and not path.exists():
            raise UserError(f"{path}: no such file") from error
        if isinstance(error, (zipfile.BadZipFile, NotImplementedError)):
            raise UserError(f"{path}: no valid archive: {error}") from error
        raise


def read_dataset(
    path: Path,
    findings: Findings,
    *,
    layout: str | None = None,
    images: Path | None = None,
    classes: Sequence[str] = (),
    origin: int | None = None,
    output: Path | None = None,
) -> tuple[list[dict[str, Any]], Splits]:
    """COCO's categories, in the order of their ids, and the images of a dataset in the format of a
    labelling tool.

    Annotations and images may lie in any folders. The split of an image is what ``ImageSets/Main``
    or YOLO's lists say, else CVAT's subset, else what a folder, or a CSV or COCO file, is called
    after, else ``train``. Boxes that are left out get COCO's ``iscrowd`` 1. Labels of an image that
    was resized or turned since, by the size that they state, follow it. ``findings`` get what may
    be wrong.

    Args:
        path: the folder, or the file that has the annotations or describes it.
        layout: one of ``READERS``; None: what the folder looks like.
        images: a folder of the images that is not below ``path``.
        classes: the classes in order; empty: YOLO's or COCO's own, else those of the data by
            name.
        origin: 1 where coordinates count pixels from 1, both ends in the box, as Pascal VOC says; 0
            where they are edges. None: 0, but 1 for Pascal VOC without any coordinate below 1,
            since many tools write edges under its names.
        output: a folder in ``path`` to pass over.

    Raises:
        UserError: the first thing that is wrong, and how many more files have it.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder")
    folder = path if path.is_dir() else path.parent
    below = output is not None and folder.resolve() in output.resolve().parents
    output = folder / output.resolve().relative_to(folder.resolve()) if output and below else None
    layout = layout or _detect_format(path, output)
    names, options, description = list(classes), dict[str, Any](), dict[str, Any]()
    if layout == "yolo":
        description = yolo.read_description(path)
        folder = yolo.dataset_folder(path, description)
        names = names or yolo.class_names(path, description, _files(folder, skip=output))
        options = {"classes": names, "keypoints": "kpt_shape" in description}
    own = path.suffix.lower() == READERS[layout][0]
    files = _annotation_files(path if own else folder, layout, output)
    if not files:
        raise UserError(
            f"{path}: no {READERS[layout][0]} file with boxes: name the folder that has them"
        )
    read = partial(read_annotations, layout, **options)
    finder = _Finder(folder, images, layout, output)
    found = finder.find(files, read, description, findings)
    findings.raise_first_error()
    known = _coco_categories(files, findings) if layout == "coco" else {}
    boxes = [each for _, _, labels, _ in found for each in labels.objects]
    names = names or list(known) or sorted({each.name for each in boxes})
    if not boxes:
        raise UserError(f"{path}: no object in any file: there is nothing to learn")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: a class is given twice: {', '.join(names)}")
    if unknown := {each.name for each in boxes} - set(names):
        raise UserError(f"{path}: class {min(unknown)!r} is not among those given")
    if origin is None:
        origin = int(layout == "voc" and all(min(each.ltrb) >= 1 for each in boxes))
    splits = _place(found, names, origin, findings)
    findings.raise_first_error()
    categories = [known.get(name, {}) | {"id": k, "name": name} for k, name in enumerate(names, 1)]
    return categories, splits


def _place(found: list[Found], names: Sequence[str], origin: int, findings: Findings) -> Splits:
    """The images of each split, with their objects in pixels."""
    splits = defaultdict[str, dict[Path, LabelledImage]](dict)
    for split, image, labels, file in found:
        try:
            with opened(image) as picture:
                stored, upright = stored_size(picture), upright_size(picture)
                tag = orientation(picture)
            placement, told = place(image, labels.size, stored, upright, tag, labels.fractions)
            first = 0 if labels.fractions else origin
            objects = [
                annotation(each, names.index(each.name) + 1, placement, first, upright)
                for each in labels.objects
            ]
        except UserError as error:
            of_image = str(image) in str(error)
            findings.error(
                "image", error if of_image else f"{image.name}: {error}", image.name, file
            )
            continue
        if told:
            findings.warning("size", f"{image.name}: {told}", image.name, file)
        entry = splits[split].setdefault(image, LabelledImage(image, upright, []))
        entry.objects.extend(objects)
    return {split: list(images.values()) for split, images in splits.items()}


class _Finder:
    """The images of a dataset, and which of them annotation files speak of."""

    def __init__(
        self, folder: Path, image_folder: Path | None, layout: str, output: Path | None
    ) -> None:
        self.folder, self.layout = folder, layout
        self.image_folder = image_folder or folder
        skip = None if image_folder else output
        images = [file for file in _files(self.image_folder, skip=skip) if is_image(file)]
        if layout != "coco":  # which names its images in full
            named = [f for f in images if IMAGE_FOLDERS & set(self._inside(f))]
            images = named or images
        self.images = images
        self.by_stem = defaultdict[str, list[Path]](list)
        for image in images:
            self.by_stem[_composed(image.stem)].append(image)

    def _inside(self, image: Path) -> tuple[str, ...]:
        return image.relative_to(self.image_folder).parts

    def image(self, names: Sequence[str], annotation: Path) -> Path:
        """The image that has the stem of the first name, else of the next; of several, the one
        whose path has most in common with names and annotation.

        Raises:
            UserError: there is none, or several that do not differ.
        """
        paths = [Path(_composed(name.replace("\\", "/"))) for name in names if name]
        stems = [path.stem if is_image(path) else path.name for path in paths]
        found = next((self.by_stem[stem] for stem in stems if stem in self.by_stem), [])
        about = {_composed(part) for path in (annotation, *paths) for part in path.parts}
        common = [len(about & set(map(_composed, image.parts))) for image in found]
        best = [image for image, n in zip(found, common, strict=True) if n == max(common)]
        name = " or ".join(dict.fromkeys(map(str, paths)))
        if not best:
            raise UserError(f"{annotation}: no image {name} below the folder of images (--images)")
        if len(best) > 1:
            raise UserError(f"{annotation}: image {name} may be {best[0]} or {best[1]}")
        return best[0]

    def find(
        self,
        files: list[Path],
        read: Callable[[Path], Iterable[Labels]],
        description: dict[str, Any],
        findings: Findings,
    ) -> list[Found]:
        """The images that files speak of, and of YOLO the others too, by path."""
        told: YoloSplits | None = None
        if self.layout == "yolo":
            told = YoloSplits(self.folder, description, self.images, self.image)
            files = [f for f in files if f not in told.lists and not yolo.is_class_list(f)]
            files = [f for f in files if _composed(f.stem) in self.by_stem or "labels" in f.parts]
            for line, file in told.missing:
                findings.warning("split", f"lists {line}, which is not there", line, file)
        lists = _split_lists(self.folder / "ImageSets" / "Main", files, findings)
        words = SPLITS | (told.words if told else {})

        def splits_of(image: Path, labels: Labels, file: Path | None) -> list[str]:
            listed = told.of(image) if told else None
            if listed is not None:
                return listed
            if file and lists:
                return lists.get(_composed(file.stem), [])
            said = [labels.split, *self._inside(image)]
            if file:
                said += file.relative_to(self.folder).parts
                stem = re.split("[^a-zA-Z]", file.stem)
                said = (
                    [*stem, *said]
                    if self.layout == "coco"
                    else said + stem * (self.layout == "csv")
                )
            said = [re.sub("^obj_(.+)_data$", r"\1", word.lower()) for word in said]
            return [next((words[word] for word in said if word in words), "train")]

        found: list[Found] = []
        used = dict[Path, Path]()
        for file in tqdm(files, desc=self.folder.name, unit="file"):
            try:
                for labels in read(file):
                    image = self.image(labels.names, file)
                    if self.layout == "coco" and used.get(image, file) != file:
                        raise UserError(
                            f"{file}: has {image.name}, as {used[image]}: name one of them"
                        )
                    used[image] = file
                    splits = splits_of(image, labels, file)
                    found += [(split, image, labels, file) for split in splits]
                    for kind, note in labels.notes.items():
                        findings.warning(kind, f"{image.name}: {note}", image.name, file)
            except UserError as error:
                findings.error("label", error, file.name)
        for image in sorted(set(self.images) - used.keys()):
            problem = "no annotation: left out; give it one without objects if nothing is on it"
            if told:
                problem = "no label file: taken for an image without objects"
                if splits := splits_of(image, Labels((), []), None):
                    found += [(split, image, Labels((), []), image) for split in splits]
                else:
                    problem = "in no list of a split: left out"
            findings.warning("no-label", problem, image.name, image)
        return sorted(found, key=lambda each: each[1])


def _composed(text: str) -> str:
    """A text in Unicode's form NFC: a file system, or an archive, may have it in another."""
    return unicodedata.normalize("NFC", text)


def _files(path: Path, suffix: str = "", skip: Path | None = None) -> list[Path]:
    """A file, or those below a folder but for the folder ``skip``, by name."""
    found = path.rglob("*") if path.is_dir() else [path]
    found = (f for f in found if f.name[0] != "." and f.name.lower().endswith(suffix))
    return sorted(f for f in found if f.is_file() and skip not in f.parents)


def _head(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(5000)


def _is_coco(file: Path) -> bool:
    head = _head(file)
    keys = re.search(rb'"(images|annotations|categories)"\s*:', head)
    return (
        head.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"{")
        and bool(keys)
        and b'"shapes"' not in head
    )


def _annotation_files(path: Path, layout: str, skip: Path | None) -> list[Path]:
    """A file, or those below a folder that have a format's ending, and boxes by their heads."""
    files = _files(path, READERS[layout][0], skip)
    if layout == "coco" or (layout == "labelme" and path.is_dir()):
        return [file for file in files if file == path or _is_coco(file) is (layout == "coco")]
    holds = has_box_columns if layout == "csv" else Path.is_file
    return [file for file in files if file == path or holds(file)]


def _detect_format(path: Path, skip: Path | None) -> str:
    def first_holds(suffix: str, text: bytes) -> bool:
        files = _files(path, suffix, skip)
        return bool(files) and text in _head(files[0])

    cvat = first_holds(".xml", b"<annotations>")
    files = _files(path, skip=skip)
    labels = [f for f in files if f.suffix == ".txt" and "labels" in f.parts]
    signs = {
        "voc": not cvat and first_holds(".xml", b"<annotation"),
        "labelme": first_holds(".json", b'"shapes"'),
        "cvat": cvat,
        "csv": bool(_annotation_files(path, "csv", skip)) and bool(_files(path, ".csv", skip)),
        "yolo": bool(labels or any(map(yolo.is_class_list, files)) or yolo.read_description(path)),
    }
    found = [name for name, sign in signs.items() if sign]
    if not found and any(map(_is_coco, _files(path, ".json", skip))):
        return "coco"
    if not found and (tables := _files(path, ".csv", skip)):
        read_annotations("csv", tables[0])  # tells which columns it lacks
    if len(found) != 1:
        what = " and ".join(found) if found else f"none of {', '.join(READERS)}"
        raise UserError(f"{path}: looks like {what}: say which format it is in by --format")
    return found[0]


def _coco_categories(files: list[Path], findings: Findings) -> dict[str, dict[str, Any]]:
    """The categories of COCO files by name, in the order of the first file's ids. The category that
    Roboflow puts above the others is left out."""
    known: dict[str, dict[str, Any]] = {}
    for file in files:
        coco = read_coco(str(file))
        categories = coco["categories"]
        used = {coco_id(each, "category_id", "") for each in coco["annotations"]}
        ids = [each["id"] for each in categories if coco_id(each, "id", "") in used]
        roots = root_categories(categories, ids)
        for category in sorted(categories, key=lambda c: (isinstance(c["id"], str), c["id"])):
            if category not in roots:
                known.setdefault(category["name"].strip(), category)
        for root in roots:
            problem = f"category {root['name']!r}, the supercategory of the others, is left out"
            findings.warning("root-category", problem, root["name"], file)
    return known


def _split_lists(lists: Path, files: list[Path], findings: Findings) -> dict[str, list[str]]:
    """The splits of each stem, by Pascal VOC's lists."""
    stems = {_composed(file.stem) for file in files}
    splits: dict[str, list[str]] = {}
    for path in [p for p in sorted(lists.glob("*.txt")) if p.stem in SPLITS]:
        for name in filter(None, map(str.strip, _composed(read_text(path)).splitlines())):
            stem = name if name in stems else Path(name).stem
            splits.setdefault(stem, []).append(SPLITS[path.stem])
            if stem not in stems:
                problem = f"lists {name}, which has no annotation file"
                findings.error("split", problem, name, path)
    return splits
