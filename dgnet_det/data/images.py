"""Images given by the user: which files, and their pixels."""

import copy
import glob
import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, detection_utils, transforms
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import ExifTags, Image

from dgnet_det.errors import UserError

ANIMATION = "holds several pictures: only the first is read"
DEEP = (
    "pixels of more than 8 bits: convert all images to 8 bits by one scale;"
    " dgnet check prints the command"
)
# How to turn an image upright, by its EXIF tag.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_image(path: Path) -> bool:
    """Whether a file's name has an ending of images that Pillow reads."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def find_images(inputs: Sequence[str], also: Collection[str] = ()) -> list[Path]:
    """Find files, the images directly in folders, and what patterns such as ``shots/*.jpg`` match.
    ``also`` has suffixes of further files to take from folders, such as ``.mp4``.

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
    """Take ``num`` images, or all if they are fewer, spread evenly over a registered dataset.

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
    """Read an image by :func:`load_image` as pixels, [H, W, C] uint8, in a format of
    ``INPUT.FORMAT``, such as ``BGR``."""
    return detection_utils.convert_PIL_to_numpy(load_image(path), image_format)


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decode an image and turn it upright by its EXIF tag. An animation gives its first picture,
    which is logged once.

    Raises:
        UserError: as :func:`opened`, or the file does not decode.
    """
    with opened(path) as image:
        if is_animation(image):
            log_first_n(logging.WARNING, f"{path}: {ANIMATION}", key="message", name=__name__)
        decode(image, path)
        return upright(image)


@contextmanager
def opened(path: str | os.PathLike[str], *, deep: bool = False) -> Iterator[Image.Image]:
    """Open an image without decoding it.

    Raises:
        UserError: there is no such file, it is no image, it is too large, or, unless ``deep``, it
            has more than 8 bits, and would become nearly black or be cut off at 255.
    """
    try:
        file = PathManager.open(os.fspath(path), "rb")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    with file:
        with _pillow_errors(path):
            image = Image.open(file)
        if not deep and is_deep(image):
            raise UserError(f"{path}: {DEEP}")
        with image:
            yield image


def decode(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Decode an opened image. Raises a :class:`UserError` that names its file where that fails."""
    with _pillow_errors(path):
        image.load()


@contextmanager
def _pillow_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn Pillow's errors on bad files, of half a dozen kinds, into a :class:`UserError`."""
    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(
            f"{path}: more than the {limit} million pixels that are read as one image: cut it into"
            " tiles, and its boxes with it"
        ) from error
    except Exception as error:
        reason = re.sub(" <.*?>", "", " ".join(str(error).split()))
        raise UserError(f"{path}: the image does not decode: {reason}") from error


class CheckedDatasetMapper(DatasetMapper):
    """Detectron2's mapper, for training and testing, which reads images by :func:`read_image`."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """As :meth:`DatasetMapper.__call__`.

        Raises:
            UserError: as :func:`load_image`, or the image is not of the size in its annotation.
        """
        mapped = copy.deepcopy(dataset_dict)
        path = mapped["file_name"]
        image = read_image(path, self.image_format)
        try:
            detection_utils.check_image_size(mapped, image)
        except detection_utils.SizeMismatchError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not of the size in its annotation: {reason}") from error
        regions = None
        if "sem_seg_file_name" in mapped:
            regions = read_image(mapped.pop("sem_seg_file_name"), "L").squeeze(2)
        augmented = transforms.AugInput(image, sem_seg=regions)
        transform = self.augmentations(augmented)
        size, proposals = augmented.image.shape[:2], self.proposal_topk
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        mapped["image"] = torch.as_tensor(pixels)
        if proposals is not None:
            detection_utils.transform_proposals(mapped, size, transform, proposal_topk=proposals)
        if not self.is_train:
            mapped.pop("annotations", None)
            return mapped
        if regions is not None:
            mapped["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype("long"))
        if "annotations" in mapped:
            self._transform_annotations(mapped, transform, size)
        return mapped


def is_deep(image: Image.Image) -> bool:
    """Whether the file of an opened image, not decoded yet, has floats or integers of more than 8
    bits. Of several such channels Pillow keeps the upper 8 bits without a word."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "TIFF":
        bits = image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))  # type: ignore[attr-defined]
        return max(bits) > 8
    if image.format == "JPEG2000":
        file = image.fp  # type: ignore[attr-defined]
        place = file.tell()
        file.seek(0)
        head = file.read(1 << 20)
        file.seek(place)
        start = head.find(b"\xff\x4f\xff\x51")  # of the codestream
        return head[start + 42] & 127 > 7  # bits - 1 of the first channel
    for codec, _, _, found in getattr(image, "tile", ()):
        options = found if isinstance(found, tuple) else (found,)
        is_16_bits = re.search(";16[BLN]", str(options[0])) or codec == "SGI16"
        if is_16_bits or (codec.startswith("ppm") and options[1] > 255):
            return True
    return False


def is_animation(image: Image.Image) -> bool:
    """Whether a file holds several pictures of equal rank, not a photograph with its preview."""
    return getattr(image, "is_animated", False) and image.format != "MPO"


def orientation(image: Image.Image) -> int:
    """The EXIF tag that says how to turn an opened image: 1 is upright, as with broken tags."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # half a dozen kinds, of an image that may decode all the same
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Turn a decoded image as its EXIF tag says. Pillow turns TIFFs as it decodes them, and takes
    the tag away."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image before it is turned."""
    if image.format == "TIFF":  # whose ``size`` Pillow turns, in some versions
        tags = image.tag_v2  # type: ignore[attr-defined]
        return tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
    return image.size


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image after it is turned, as it is read."""
    width, height = stored_size(image)
    return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)
