"""What the readers of other annotation formats give: images with their boxes."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from PIL import ExifTags, Image

from dgnet_det.errors import UserError

# Splits are named as Detectron2 and this project name them.
SPLIT_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class Box(NamedTuple):
    """An object.

    Attributes:
        name: of its class.
        xywh: left, top, width and height, pixels of the upright image; the image's left edge is 0.
        crowd: whether training and evaluation leave it out.
    """

    name: str
    xywh: tuple[float, float, float, float]
    crowd: bool = False


class RawImage(NamedTuple):
    """An image: its file, width and height in pixels, and objects."""

    path: Path
    size: tuple[int, int]
    boxes: list[Box]


class RawSplit(NamedTuple):
    """The images of a split, and the folder that all of them are in."""

    folder: Path
    images: list[RawImage]


class RawDataset(NamedTuple):
    """A dataset: its classes in order, and its splits by name."""

    classes: list[str]
    splits: dict[str, RawSplit]


def import_globox() -> ModuleType:
    """The package that parses boxes.

    Raises:
        UserError: it is not installed.
    """
    try:
        import globox
    except ImportError as error:
        raise UserError(
            "globox, which reads Pascal VOC and YOLO, is not installed: pip install globox"
        ) from error
    return globox


def images_in(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder, by name."""
    suffixes = Image.registered_extensions()
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in suffixes and path.is_file())


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, turned as its EXIF tag says: as Detectron2 reads it.

    Raises:
        UserError: it is no image. Its pixels are not decoded.
    """
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    except Exception as error:  # Pillow raises half a dozen kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: the image cannot be read: {reason}") from error


def named(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders by the split that they are called after."""
    return {SPLIT_NAMES.get(f.name.lower(), f.name.lower()): f for f in folders}
