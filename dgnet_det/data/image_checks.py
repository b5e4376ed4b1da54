"""Checks of the image files that a COCO JSON file lists: there, whole, of the stated size."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from dgnet_det.data.coco_checks import size_of
from dgnet_det.data.findings import Findings

# Pixels that Pillow converts to RGB, but not to what a person sees or means.
ODD_MODES = {
    "CMYK": "CMYK colours, as for print: they differ on conversion to RGB",
    "P": "a palette: right for drawings, but a photograph's labels are often saved like this",
    "RGBA": "transparency, which is dropped: see what lies under it",
    "LA": "transparency, which is dropped: see what lies under it",
    "1": "only black and white",
}
SIDEWAYS = (5, 6, 7, 8)  # values of the EXIF orientation tag that swap width and height


class ImageFile(NamedTuple):
    """An image file that decodes.

    Attributes:
        size: width and height as stored, pixels.
        orientation: the EXIF tag: 1 is upright.
        mode: Pillow's name of the pixel format.
        frames: pictures in the file.
        digest: of the file's bytes.
    """

    size: tuple[int, int]
    orientation: int
    mode: str
    frames: int
    digest: str

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as Detectron2 reads the image, which follows the EXIF tag."""
        return self.size[::-1] if self.orientation in SIDEWAYS else self.size


def check_presence(
    path: str,
    images: Sequence[dict[str, Any]],
    image_root: str,
    findings: Findings,
    mend: str = "give the folder that the file names start from",
) -> list[dict[str, Any]]:
    """Check that image files exist.

    Args:
        path: of the JSON file that lists them, for messages.
        images: sound entries of 'images'.
        image_root: the folder that file names start from.
        findings: what is found is added to these.
        mend: what to do where nothing better can be told.

    Returns:
        The entries whose file exists.
    """
    present = []
    in_folder: dict[str, str] | None = None
    for image in images:
        name = image["file_name"]
        where = os.path.join(image_root, name)
        if PathManager.isfile(where):
            present.append(image)
            continue
        if in_folder is None:
            in_folder = {entry.lower(): entry for entry in PathManager.ls(image_root)}
        hint = _where_it_is(name, in_folder) or mend
        problem = f"no such image, listed in {path}: {hint}"
        findings.error("missing-image", path, problem, name, where)
    return present


def _where_it_is(name: str, in_folder: dict[str, str]) -> str | None:
    """What to mend, where the folder has nearly that file."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    if last != name and last in in_folder.values():
        return f"the folder has {last}: drop what is before it from file_name"
    if "\\" in name:
        return "file_name has backslashes: write slashes"
    if last.lower() in in_folder:
        return f"the folder has {in_folder[last.lower()]}: correct upper and lower case"
    stem = Path(last.lower()).stem
    near = next((entry for low, entry in in_folder.items() if Path(low).stem == stem), None)
    return f"the folder has {near}: correct the ending" if near else None


def check_files(
    path: str, images: Sequence[dict[str, Any]], image_root: str, findings: Findings
) -> dict[str, ImageFile]:
    """Decode image files and check what is in them. Shows its progress.

    Args:
        path: of the JSON file that lists them, for messages.
        images: sound entries of 'images' whose file exists.
        image_root: the folder that file names start from.
        findings: what is found is added to these.

    Returns:
        The files that decode, by file name.
    """
    names = [image["file_name"] for image in images]
    files: dict[str, ImageFile] = {}
    first_with: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        read = pool.map(read_image_file, [os.path.join(image_root, name) for name in names])
        progress = tqdm(read, total=len(names), desc="images", unit="image")
        for image, file in zip(images, progress, strict=True):
            name = image["file_name"]
            where = os.path.join(image_root, name)
            if isinstance(file, str):
                findings.error("undecodable-image", path, file, name, where)
                continue
            files[name] = file
            _check_file(path, where, image, file, findings)
            twin = first_with.setdefault(file.digest, name)
            if twin != name:
                problem = f"the same file as {twin}"
                findings.warning("duplicate-image", path, problem, name, where)
    return files


def read_image_file(path: str) -> ImageFile | str:
    """Decode an image file; what is wrong with it where that fails."""
    try:
        with PathManager.open(path, "rb") as file:
            content = file.read()
        with Image.open(BytesIO(content)) as image:
            image.load()
            return ImageFile(
                image.size,
                image.getexif().get(ExifTags.Base.Orientation, 1),
                image.mode,
                getattr(image, "n_frames", 1),
                hashlib.sha256(content).hexdigest(),
            )
    except UnidentifiedImageError:
        what = "an empty file" if not content else "no image of a kind that Pillow reads"
        return f"{what}: convert it to PNG or JPEG, or replace it"
    except Exception as error:  # Pillow raises half a dozen kinds
        reason = " ".join(str(error).split())
        return f"the image does not decode: {reason}: replace the file"


def _check_file(
    path: str, where: str, image: dict[str, Any], file: ImageFile, findings: Findings
) -> None:
    name = image["file_name"]
    stated = size_of(image)
    if stated != file.upright_size:
        w, h = file.upright_size
        problem = f"{w} × {h} pixels, but width and height say {stated[0]} × {stated[1]}"
        if stated == file.size:
            problem += (
                ": its EXIF tag turns it by 90°; save it upright, and see that its boxes fit then"
            )
        findings.error("image-size", path, problem, name, where)
    elif file.orientation != 1:
        problem = (
            "its EXIF tag turns it: Detectron2 does so; see that the boxes were drawn on"
            " the turned image"
        )
        findings.warning("image-turned", path, problem, name, where)
    if file.mode.startswith(("I", "F")):
        problem = f"{file.mode} pixels: values above 255 become 255; convert to 8 bits"
        findings.warning("image-16-bit", path, problem, name, where)
    elif file.mode in ODD_MODES:
        findings.warning(f"image-mode-{file.mode}", path, ODD_MODES[file.mode], name, where)
    if file.frames > 1:
        problem = f"holds {file.frames} pictures: only the first is used"
        findings.warning("image-frames", path, problem, name, where)


def compare_images(
    train_path: str,
    train: dict[str, ImageFile],
    val_path: str,
    val: dict[str, ImageFile],
    findings: Findings,
) -> None:
    """Check that two files list no image in common, by content, and none of one name that may be
    the same saved anew.

    Args:
        train_path, val_path: the JSON files, for messages.
        train, val: what :func:`check_files` returned for them.
        findings: what is found is added to these.
    """
    trained = {file.digest: name for name, file in train.items()}
    names = {os.path.basename(name): name for name in train}
    for name, file in val.items():
        namesake = names.get(os.path.basename(name))
        if file.digest in trained:
            problem = f"{name} is the same image as {trained[file.digest]} of {train_path}"
            _add_shared(val_path, problem, name, findings)
        elif namesake is not None:
            problem = (
                f"{name} has the name of {namesake} of {train_path}, and other bytes: see that it"
                " is not the same picture saved anew"
            )
            findings.warning("shared-name", val_path, problem, name)


def compare_image_paths(
    train_root: str,
    train: Iterable[dict[str, Any]],
    val_path: str,
    val_root: str,
    val: Iterable[dict[str, Any]],
    findings: Findings,
) -> None:
    """The same by the files' paths, without reading them."""
    trained = {os.path.abspath(os.path.join(train_root, i["file_name"])) for i in train}
    for image in val:
        file = os.path.join(val_root, image["file_name"])
        if os.path.abspath(file) in trained:
            _add_shared(val_path, f"{file} is in the training set too", file, findings)


def _add_shared(val_path: str, problem: str, name: str, findings: Findings) -> None:
    mend = "AP would be that of images learned by heart; take it out of one of the two"
    findings.error("shared-image", val_path, f"{problem}: {mend}", name)
