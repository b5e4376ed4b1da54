"""Images given by the user: which files, and their pixels."""

import glob
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, DatasetMapper, detection_utils
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import ExifTags, Image

from dgnet_det.errors import UserError

ANIMATION = "holds several pictures: only the first is read"


def is_image(path: Path) -> bool:
    """Whether a file's name has an ending of images that Pillow reads."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def find_images(inputs: Sequence[str], also: Collection[str] = ()) -> list[Path]:
    """Files as given, the images directly in folders, by name, and what patterns such as
    ``shots/*.jpg`` match. ``also`` has suffixes of further files to take from folders, such as
    ``.mp4``.

    Raises:
        UserError: a path does not exist, a folder holds no image, or a pattern matches nothing.
    """
    images: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if is_image(f) or f.suffix.lower() in also)
            if not found:
                raise UserError(f"{path}: no image in this folder")
            images += found
        elif path.is_file():
            images.append(path)
        elif matches := sorted(filter(os.path.isfile, glob.glob(name, recursive=True))):
            images += map(Path, matches)
        else:
            raise UserError(f"{path}: no such image or folder")
    return images


def spread_images(dataset: str, num: int) -> list[dict[str, Any]]:
    """``num`` images spread evenly over a dataset, all if it has fewer, in Detectron2's dataset
    format.

    Raises:
        UserError: ``num`` is below 1, or the dataset's files are not there.
    """
    if num < 1:
        raise UserError(f"{num} images: give at least 1")
    try:
        images = DatasetCatalog.get(dataset)
    except OSError as error:
        raise UserError(f"{dataset}: {error}: set $DETECTRON2_DATASETS to its folder") from error
    num = min(num, len(images))
    return [images[k * len(images) // num] for k in range(num)]


def read_image(path: str | os.PathLike[str], image_format: str) -> np.ndarray:
    """The pixels of an image, [H, W, C] uint8, upright by its EXIF tag, in a format that
    ``INPUT.FORMAT`` takes, such as ``BGR``; of an animation, its first picture, which is logged.

    Raises:
        UserError: as :func:`opened`.
    """
    with opened(path):
        return detection_utils.read_image(os.fspath(path), format=image_format)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image, not decoded yet. That an animation's first picture alone is read, is logged once.

    Raises:
        UserError: there is no such file, it is no image, it does not decode in the body, or
            :func:`wide_pixels`.
    """
    with reading(path), PathManager.open(os.fspath(path), "rb") as file, Image.open(file) as image:
        if problem := wide_pixels(image):
            raise UserError(f"{path}: {problem}")
        if is_animation(image):
            log_first_n(logging.WARNING, f"{path}: {ANIMATION}", key="message", name=__name__)
        yield image


class CheckedDatasetMapper(DatasetMapper):
    """Detectron2's mapper, for training and testing, with a :class:`UserError` that names the file
    where :func:`read_image` would raise it, or an image is not of its annotation's size."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """As :meth:`DatasetMapper.__call__`."""
        path = dataset_dict["file_name"]
        with opened(path):
            pass  # its header is right
        try:
            return super().__call__(dataset_dict)
        except detection_utils.SizeMismatchError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not of the size in its annotation: {reason}") from error
        except Exception:
            read_image(path, self.image_format)  # tells whether it is the image's fault
            raise


def wide_pixels(image: Image.Image) -> str:
    """What is wrong with integers of more than 8 bits and floats; empty for other pixels.

    They would be cut off at 255, and no scale suits all: a microscope's 12 bits in a range of 16
    would become nearly black. Of colours of 16 bits each, Pillow takes the upper 8.
    """
    if not image.mode.startswith(("I", "F")):
        return ""
    return (
        f"pixels of more than 8 bits (Pillow's mode {image.mode}): convert all images to 8 bits by"
        " one scale: (pixels - low) * 255 / (high - low), with the same low and high for all"
    )


def is_animation(image: Image.Image) -> bool:
    """Whether a file holds several pictures of equal rank, not a photograph with its preview."""
    return getattr(image, "is_animated", False) and image.format != "MPO"


def orientation(image: Image.Image) -> int:
    """The EXIF tag that says how to turn an image: 1 is upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image, turned as its EXIF tag says: as Detectron2 reads it."""
    return image.size[::-1] if orientation(image) in (5, 6, 7, 8) else image.size


@contextmanager
def reading(
    path: str | os.PathLike[str], problem: str = "the image does not decode"
) -> Iterator[None]:
    """Make a :class:`UserError` that names the file of whatever another library raises."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # Pillow raises half a dozen kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {problem}: {reason}") from error
