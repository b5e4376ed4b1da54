"""Datasets in the formats of labelling tools become COCO JSON; images stay where they are."""

import os
import re
import shutil
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dgnet_det.data import formats, yolo
from dgnet_det.data.coco import read_coco, root_categories
from dgnet_det.data.findings import Findings
from dgnet_det.data.formats import READERS, Labels
from dgnet_det.data.images import is_image
from dgnet_det.data.placing import place
from dgnet_det.data.writing import LabelledImage, Splits
from dgnet_det.errors import UserError
from dgnet_det.utils.files import folder_written_whole

IMAGE_FOLDERS = {"JPEGImages", "images", "Images"}


@contextmanager
def unpacked(path: Path, output: Path) -> Iterator[Path]:
    """Unpack a .zip into a folder in ``output``, which is removed if the body fails. Other paths
    stay as they are.

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
    """Read a dataset in the format of a labelling tool: COCO's categories, in the order of their
    ids, and the images of each split.

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
    skip = None
    if output and folder.resolve() in output.resolve().parents:
        skip = folder / output.resolve().relative_to(folder.resolve())
    layout = layout or _detect_format(path, skip)
    names, options, description = list(classes), dict[str, Any](), dict[str, Any]()
    if layout == "yolo":
        description = yolo.read_description(path)
        folder = yolo.dataset_folder(path, description)
        names = names or yolo.class_names(path, description, _files(folder, skip=skip))
        options = {"classes": names, "keypoints": "kpt_shape" in description}
    ending = READERS[layout][0]
    files = _annotation_files(path if path.suffix.lower() == ending else folder, layout, skip)
    if not files:
        raise UserError(f"{path}: no {ending} file with boxes: name the folder that has them")
    source = _Images(images or folder, layout, None if images else skip)
    told = _SplitSource(folder, layout, source)
    if layout == "yolo":
        told.read_description(description, findings)
        files = [f for f in files if f not in told.lists and not yolo.is_class_list(f)]
        files = [f for f in files if _composed(f.stem) in source.by_stem or "labels" in f.parts]
    told.read_voc_lists(files, findings)
    found = _match(files, lambda f: formats.read_annotations(layout, f, **options), told, findings)
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
    ids = {name: number for number, name in enumerate(names, 1)}
    splits = defaultdict[str, dict[Path, LabelledImage]](dict)
    for split, image, labels, file in found:
        try:
            placed, changes = place(image, labels, ids, origin)
        except UserError as error:
            findings.error("image", error, image.name)
            continue
        if changes:
            findings.warning("size", f"{image.name}: {changes}", image.name, file)
        splits[split].setdefault(image, placed._replace(objects=[])).objects.extend(placed.objects)
    findings.raise_first_error()
    categories = [known.get(name, {}) | {"id": k, "name": name} for name, k in ids.items()]
    return categories, {split: list(images.values()) for split, images in splits.items()}


class _Images:
    """The images of a dataset, which annotation files name."""

    def __init__(self, folder: Path, layout: str, skip: Path | None) -> None:
        self.folder = folder
        images = [file for file in _files(folder, skip=skip) if is_image(file)]
        # COCO's files name their images in full.
        named = [f for f in images if IMAGE_FOLDERS & set(self.inside(f)) and layout != "coco"]
        self.all = named or images
        self.by_stem = defaultdict[str, list[Path]](list)
        for image in self.all:
            self.by_stem[_composed(image.stem)].append(image)

    def inside(self, image: Path) -> tuple[str, ...]:
        """The parts of an image's path from the folder on."""
        return image.relative_to(self.folder).parts

    def find(self, names: Sequence[str], annotation: Path) -> Path:
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


class _SplitSource:
    """Sources of an image's split: lists and descriptions of images, and names in paths."""

    def __init__(self, folder: Path, layout: str, images: _Images) -> None:
        self.folder, self.layout, self.images = folder, layout, images
        self.lists: list[Path] = []
        self.listed = defaultdict[Path, set[str]](set)  # splits of images, or of annotation files
        self.words = dict(yolo.SPLITS)

    def read_description(self, data: dict[str, Any], findings: Findings) -> None:
        """Take the splits of YOLO's images from their description. A folder, or a name in its path,
        that is given to several splits tells nothing."""
        folders, words = defaultdict[Path, set[str]](set), defaultdict[str, set[str]](set)
        for split, found, names in yolo.described_splits(self.folder, data):
            if found and found.is_file():
                for line in self._read_list(found, split, self._listed_image):
                    findings.warning("split", f"lists {line}, which is not there", line, found)
                continue
            for name in names:
                words[name].add(split)
            if found:
                folders[_absolute(found)].add(split)
        for image in self.images.all:
            above = _absolute(image).parents
            nearest = next((folders[f] for f in above if f in folders), set())
            if len(nearest) == 1:
                self.listed[image] |= nearest
        self.words |= {name: min(splits) for name, splits in words.items() if len(splits) == 1}

    def read_voc_lists(self, files: Sequence[Path], findings: Findings) -> None:
        """Take the splits of annotation files from Pascal VOC's lists of their stems."""
        by_stem = defaultdict[str, list[Path]](list)
        for file in files:
            by_stem[_composed(file.stem)].append(file)

        def find(line: str, _: Path) -> list[Path]:
            return by_stem.get(line) or by_stem.get(Path(line).stem, [])

        for path in sorted((self.folder / "ImageSets" / "Main").glob("*.txt")):
            if split := yolo.SPLITS.get(path.stem):
                for line in self._read_list(path, split, find):
                    problem = f"lists {line}, which has no annotation file"
                    findings.error("split", problem, line, path)

    def _read_list(
        self, path: Path, split: str, find: Callable[[str, Path], Sequence[Path]]
    ) -> Iterator[str]:
        """Put the files that ``find`` gives for each line of a list in a split, and return the
        lines for which it gives none."""
        self.lists.append(path)
        for line in filter(None, map(str.strip, _composed(formats.read_text(path)).splitlines())):
            found = find(line, path)
            for file in found:
                self.listed[file].add(split)
            if not found:
                yield line

    def _listed_image(self, name: str, path: Path) -> Sequence[Path]:
        try:
            return [self.images.find([name], path)]
        except UserError:
            return []

    def splits(self, image: Path, file: Path | None = None, subset: str = "") -> list[str]:
        """The splits of an image, whose annotation file may name a ``subset``. There is none where
        lists leave the image out."""
        listed = self.listed.get(image) or self.listed.get(file or image)
        if listed or (self.lists and self.listed):  # of empty lists, names tell
            return sorted(listed or ())
        words = [subset, *self.images.inside(image)]
        if file:
            words += file.relative_to(self.folder).parts
            stem = re.split("[^a-zA-Z]", file.stem)
            words = stem * (self.layout == "coco") + words + stem * (self.layout == "csv")
        words = [re.sub("^obj_(.+)_data$", r"\1", word.lower()) for word in words]
        return [next((self.words[word] for word in words if word in self.words), "train")]


def _match(
    files: Sequence[Path],
    read: Callable[[Path], Iterable[Labels]],
    told: _SplitSource,
    findings: Findings,
) -> list[tuple[str, Path, Labels, Path]]:
    """Match annotation files with images: a split, an image in it, the image's labels, and their
    file, in the order of the images' paths. Of YOLO, images without labels are among them."""
    images, found, used = told.images, list[tuple[str, Path, Labels, Path]](), dict[Path, Path]()
    for file in tqdm(files, desc=told.folder.name, unit="file"):
        try:
            for labels in read(file):
                image = images.find(labels.names, file)
                if told.layout == "coco" and used.get(image, file) != file:
                    raise UserError(f"{file}: has {image.name}, as {used[image]}: name one of them")
                used[image] = file
                splits = told.splits(image, file, labels.split)
                found += [(split, image, labels, file) for split in splits]
                for kind, note in labels.notes.items():
                    findings.warning(kind, f"{image.name}: {note}", image.name, file)
        except UserError as error:
            findings.error("label", error, file.name)
    for image in sorted(set(images.all) - used.keys()):
        problem = "no annotation: left out; give it one without objects if nothing is on it"
        if told.layout == "yolo":
            splits = told.splits(image)
            found += [(split, image, Labels((), []), image) for split in splits]
            problem = "no label file: taken for an image without objects"
            problem = problem if splits else "in no list of a split: left out"
        findings.warning("no-label", problem, image.name, image)
    return sorted(found, key=lambda each: each[1])


def _absolute(path: Path) -> Path:
    """An absolute path without "..", which may lead through links."""
    return Path(os.path.abspath(path))


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
    is_object = head.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"{")
    has_keys = re.search(rb'"(images|annotations|categories)"\s*:', head)
    return is_object and bool(has_keys) and b'"shapes"' not in head


# Whether files with a format's ending are of that format. Of others, all are.
HOLDS: dict[str, Callable[[Path], bool]] = {
    "coco": _is_coco,
    "labelme": lambda file: not _is_coco(file),
    "csv": formats.has_box_columns,
}


def _annotation_files(path: Path, layout: str, skip: Path | None) -> list[Path]:
    """A file, or the files of a format below a folder, by their endings and first bytes."""
    files, holds = _files(path, READERS[layout][0], skip), HOLDS.get(layout, Path.is_file)
    return [file for file in files if file == path or holds(file)]


def _detect_format(path: Path, skip: Path | None) -> str:
    files = _files(path, skip=skip)

    def of(suffix: str) -> list[Path]:
        return [file for file in files if file.name.lower().endswith(suffix)]

    def first_holds(suffix: str, text: bytes) -> bool:
        return any(text in _head(file) for file in of(suffix)[:1])

    cvat = first_holds(".xml", b"<annotations>")
    labels = [f for f in files if f.suffix == ".txt" and "labels" in f.parts]
    signs = {
        "voc": not cvat and first_holds(".xml", b"<annotation"),
        "labelme": first_holds(".json", b'"shapes"'),
        "cvat": cvat,
        "csv": bool(_annotation_files(path, "csv", skip)),
        "yolo": bool(labels or any(map(yolo.is_class_list, files)) or yolo.read_description(path)),
    }
    found = [name for name, sign in signs.items() if sign]
    if not found and any(map(_is_coco, of(".json"))):
        return "coco"
    if not found and (tables := of(".csv")):
        formats.read_annotations("csv", tables[0])  # tells which columns it lacks
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
        used = {formats.coco_id(each, "category_id", "") for each in coco["annotations"]}
        ids = [each["id"] for each in categories if formats.coco_id(each, "id", "") in used]
        roots = root_categories(categories, ids)
        for category in sorted(categories, key=lambda c: (isinstance(c["id"], str), c["id"])):
            if category not in roots:
                known.setdefault(category["name"].strip(), category)
        for root in roots:
            problem = f"category {root['name']!r}, the supercategory of the others, is left out"
            findings.warning("root-category", problem, root["name"], file)
    return known
