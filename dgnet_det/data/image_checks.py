"""Checks of the image files that a COCO JSON file lists: there, whole, of the stated size."""

import hashlib
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from dgnet_det.data.findings import Findings
from dgnet_det.data.images import (
    ANIMATION,
    is_animation,
    orientation,
    reading,
    upright_size,
    wide_pixels,
)
from dgnet_det.errors import UserError

LEARNED_BY_HEART = "AP would be that of images learned by heart; take it out of one of the two"
TURNED = ": its EXIF tag turns it by 90°; save it upright, and see that its boxes fit then"
# Pixels that Pillow converts to RGB, but not to what a person sees or means.
ODD_MODES = {
    "CMYK": "CMYK colours, as for print: they differ on conversion to RGB",
    "P": "a palette: right for drawings, but a photograph's labels are often saved like this",
    "RGBA": "transparency, which is dropped: see what lies under it",
    "LA": "transparency, which is dropped: see what lies under it",
    "1": "only black and white",
}


class ImageFile(NamedTuple):
    """An image file that decodes: what is not right with it, by the kind of finding, its width and
    height as stored and as Detectron2 reads it, pixels, and a digest of its bytes."""

    odd: dict[str, str]
    size: tuple[int, int]
    upright_size: tuple[int, int]
    digest: str


def check_presence(
    images: Collection[dict[str, Any]],
    image_root: str,
    findings: Findings,
    mend: str = "give the folder that the file names start from",
) -> list[dict[str, Any]]:
    """Check that the files of sound entries of 'images' exist, by one listing of each folder that
    they are in, and return those whose file exists. ``findings`` are those of the JSON file."""

    @cache
    def listing(folder: str) -> set[str]:
        return set(PathManager.ls(folder)) if PathManager.isdir(folder) else set()

    by_stem = {Path(name).stem.lower(): name for name in listing(image_root)}
    present = []
    for image in images:
        where = os.path.join(image_root, image["file_name"])
        folder, name = os.path.split(where)
        if name in listing(folder):
            present.append(image)
            continue
        near = by_stem.get(Path(name.rsplit("\\")[-1]).stem.lower())
        hint = f"the folder has {near}: correct file_name" if near else mend
        if "\\" in name:
            hint = "file_name has backslashes: write slashes"
        problem = f"no such image, listed in {findings.file}: {hint}"
        findings.error("missing-image", problem, image["file_name"], where)
    return present


def check_files(
    images: Collection[dict[str, Any]], image_root: str, findings: Findings
) -> dict[str, ImageFile]:
    """Decode the files that :func:`check_presence` returned and check what is in them. Those that
    decode, by file name. Shows its progress."""
    paths = [os.path.join(image_root, image["file_name"]) for image in images]
    files: dict[str, ImageFile] = {}
    first_with: dict[str, str] = {}
    read = thread_map(read_image_file, paths, desc="images", unit="image")
    for image, path, file in zip(images, paths, read, strict=True):
        name = image["file_name"]
        if isinstance(file, UserError):
            findings.error("undecodable-image", file, name)
            continue
        files[name] = file
        for kind, problem in file.odd.items():
            report = findings.error if kind == "image-16-bit" else findings.warning
            report(kind, problem, name, path)
        stated = width, height = image["width"], image["height"]
        if stated != file.upright_size:
            w, h = file.upright_size
            problem = f"{w} × {h} pixels, but width and height say {width} × {height}"
            findings.error(
                "image-size", problem + (TURNED if stated == file.size else ""), name, path
            )
        twin = first_with.setdefault(file.digest, name)
        if twin != name:
            findings.warning("duplicate-image", f"the same file as {twin}", name, path)
    return files


def read_image_file(path: str) -> ImageFile | UserError:
    """Decode an image file; what is wrong with it where that fails."""
    odd: dict[str, str] = {}
    try:
        with reading(path), PathManager.open(path, "rb") as file, Image.open(file) as image:
            if orientation(image) != 1:
                odd["image-turned"] = "its EXIF tag turns it: see that boxes fit the turned image"
            if problem := wide_pixels(image):
                odd["image-16-bit"] = problem
            if image.mode in ODD_MODES:
                odd[f"image-mode-{image.mode}"] = ODD_MODES[image.mode]
            if is_animation(image):
                odd["image-animation"] = ANIMATION
            size, upright = image.size, upright_size(image)
            image.load()
            file.seek(0)
            return ImageFile(odd, size, upright, hashlib.sha256(file.read()).hexdigest())
    except UserError as error:
        return error


def compare_images(
    train_path: str, train: dict[str, ImageFile], val: dict[str, ImageFile], findings: Findings
) -> None:
    """Check that what :func:`check_files` returned for two sets has no image in common, by content,
    and none of one name that may be the same saved anew. ``findings`` are those of the validation
    set, ``train_path`` is the JSON file of the other."""
    trained = {file.digest: name for name, file in train.items()}
    names = {os.path.basename(name): name for name in train}
    for name, file in val.items():
        namesake = names.get(os.path.basename(name))
        if file.digest in trained:
            problem = f"{name} is the same image as {trained[file.digest]} of {train_path}"
            findings.error("shared-image", f"{problem}: {LEARNED_BY_HEART}", name)
        elif namesake is not None:
            problem = (
                f"{name} has the name of {namesake} of {train_path}, and other bytes: see that it"
                " is not the same picture saved anew"
            )
            findings.warning("shared-name", problem, name)
