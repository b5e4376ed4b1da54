"""Checks of the image files that a COCO JSON file lists: there, whole, of the stated size."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager
from tqdm.contrib.concurrent import thread_map

from dgnet_det.data import images
from dgnet_det.data.coco import IMPORT_MENDS
from dgnet_det.data.coco_checks import Content
from dgnet_det.data.depth import advice
from dgnet_det.data.findings import Findings
from dgnet_det.data.placing import similar
from dgnet_det.errors import UserError

LEARNED_BY_HEART = "AP would be that of images learned by heart; take it out of one of the two"
# Pixels that Pillow converts to RGB, but not to what a person sees or means.
ODD_MODES = {
    "CMYK": "CMYK colours, as for print: they differ on conversion to RGB",
    "P": "a palette: right for drawings, but a photograph's labels are often saved like this",
    "RGBA": "transparency, which is dropped: see what lies under it",
    "LA": "transparency, which is dropped: see what lies under it",
    "1": "only black and white",
}


class ImageFile(NamedTuple):
    """The properties of an image file that decodes."""

    odd: dict[str, str]  # by the kind of finding, what is not right with it
    deep: bool  # more than 8 bits
    stored_size: tuple[int, int]  # width and height, pixels
    upright_size: tuple[int, int]  # as it is read
    digest: str  # of its bytes


def check_presence(content: Content, findings: Findings, mend: str = "") -> list[dict[str, Any]]:
    """Check that images exist, by one listing of each folder that they are in, and return the
    entries of those that do. ``findings`` are those of the JSON file."""

    @cache
    def listing(folder: str) -> set[str]:
        return set(PathManager.ls(folder)) if PathManager.isdir(folder) else set()

    def plain(name: str) -> str:
        """The name without folders and ending, in small letters and one Unicode form."""
        stem = Path(re.split(r"[\\/]", name)[-1]).stem
        return unicodedata.normalize("NFC", stem).lower()

    there = {plain(name): name for name in listing(content.image_root)}
    present = []
    for image in content.images.values():
        where = os.path.join(content.image_root, image["file_name"])
        folder, name = os.path.split(where)
        if name in listing(folder):
            present.append(image)
            continue
        hint = mend or "give the folder that the file names start from"
        if near := there.get(plain(image["file_name"])):
            same = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", name)
            form = " in another Unicode form" if same and near != name else ""
            hint = f"the folder has {near}{form}: {IMPORT_MENDS} finds it by this name"
        problem = f"no such image, listed in {findings.file}: {hint}"
        findings.error("missing-image", problem, image["file_name"], where)
    return present


def check_files(
    entries: Collection[dict[str, Any]], image_root: str, findings: Findings
) -> dict[str, ImageFile]:
    """Decode the images that :func:`check_presence` returned, check them and return those that
    decode, by file name. Shows its progress."""
    paths = {entry["file_name"]: os.path.join(image_root, entry["file_name"]) for entry in entries}
    read = thread_map(read_image_file, paths.values(), desc="images", unit="image")
    found = dict(zip(paths, read, strict=True))
    files: dict[str, ImageFile] = {}
    first_with: dict[str, str] = {}
    for entry in entries:
        name = entry["file_name"]
        path, file = paths[name], found[name]
        if isinstance(file, UserError):
            findings.error("undecodable-image", file, name)
            continue
        files[name] = file
        for kind, problem in file.odd.items():
            findings.warning(kind, problem, name, path)
        stated, size = (entry["width"], entry["height"]), file.upright_size
        if stated != size:
            problem = "{} × {} pixels, but width and height say {} × {}".format(*size, *stated)
            problem += " before its EXIF tag turns it" * (stated == file.stored_size)
            mend = "give the images that were labelled, or correct the size"
            if similar(stated, size) or similar(stated, file.stored_size):
                mend = f"{IMPORT_MENDS} turns or scales its boxes to fit"
            findings.error("image-size", f"{problem}: {mend}", name, path)
        twin = first_with.setdefault(file.digest, name)
        if twin != name:
            findings.warning("duplicate-image", f"the same file as {twin}", name, path)
    if deep := {name: paths[name] for name, file in files.items() if file.deep}:
        problem = advice(deep.values(), image_root)
        for name, path in deep.items():
            findings.error("image-16-bit", problem, name, path)
    return files


def read_image_file(path: str) -> ImageFile | UserError:
    """Decode an image file and note its properties; returns the error where that fails."""
    odd: dict[str, str] = {}
    try:
        with images.opened(path, deep=True) as image:
            deep = images.is_deep(image)  # before its EXIF tags are read, which decodes some PNGs
            if images.orientation(image) != 1:
                odd["image-turned"] = "its EXIF tag turns it: see that boxes fit the turned image"
            if image.mode in ODD_MODES:
                odd[f"image-mode-{image.mode}"] = ODD_MODES[image.mode]
            if images.is_animation(image):
                odd["image-animation"] = images.ANIMATION
            stored, upright = images.stored_size(image), images.upright_size(image)
            images.decode(image, path)
    except UserError as error:
        return error
    with PathManager.open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return ImageFile(odd, deep, stored, upright, digest)


def compare_images(
    train_path: str, train: dict[str, ImageFile], val: dict[str, ImageFile], findings: Findings
) -> None:
    """Check that two sets, as :func:`check_files` returned them, have no image in common, by
    content, and none of one name that may be the same saved anew. ``findings`` are those of the
    validation set, ``train_path`` is the other's JSON file."""
    trained = {file.digest: name for name, file in train.items()}
    names = {os.path.basename(name): name for name in train}
    for name, file in val.items():
        namesake = names.get(os.path.basename(name))
        if file.digest in trained:
            problem = f"{name} is the same image as {trained[file.digest]} of {train_path}"
            findings.error("shared-image", f"{problem}: {LEARNED_BY_HEART}", name)
        elif namesake is not None:
            problem = f"{name} has the name of {namesake} of {train_path}, and other bytes"
            problem += ": see that it is not the same picture saved anew"
            findings.warning("shared-name", problem, name)
