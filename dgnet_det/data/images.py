"""Images given by the user: which files, and their pixels."""

import glob
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, detection_utils
from PIL import Image

from dgnet_det.errors import UserError


def find_images(inputs: Sequence[str], also: Collection[str] = ()) -> list[Path]:
    """Files as given, the images directly in folders, by name, and what patterns such as
    ``shots/*.jpg`` match.

    Args:
        inputs: files, folders and patterns.
        also: suffixes of further files to take from folders, such as ``.mp4``.

    Raises:
        UserError: a path does not exist, a folder holds no image, or a pattern matches nothing.
    """
    suffixes = {*Image.registered_extensions(), *also}
    images: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
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
        UserError: ``num`` is below 1.
    """
    if num < 1:
        raise UserError(f"--num {num}: give at least 1")
    images = DatasetCatalog.get(dataset)
    num = min(num, len(images))
    return [images[k * len(images) // num] for k in range(num)]


def read_image(path: str | os.PathLike[str], image_format: str) -> np.ndarray:
    """The pixels of an image, [H, W, C] uint8, upright by its EXIF tag.

    Args:
        path: the file.
        image_format: ``BGR``, ``RGB`` or another that ``INPUT.FORMAT`` takes.

    Raises:
        UserError: there is no such file, or it does not decode.
    """
    try:
        return detection_utils.read_image(os.fspath(path), format=image_format)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image") from error
    except Exception as error:  # Pillow raises half a dozen kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: the image does not decode: {reason}") from error
