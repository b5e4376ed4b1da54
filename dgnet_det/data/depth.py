"""Images of more than 8 bits: the range of their values, and their conversion.

No scale suits all of them: a microscope's 12 bits in a range of 16 would become nearly black.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from dgnet_det.data.images import TURNS, is_deep, is_image, opened, orientation
from dgnet_det.utils.files import folder_written_whole

OUTERMOST = 0.1  # per cent of an image's values at either end, which a scale may cut off


def deep_pixels(path: str) -> np.ndarray:
    """Read all bits of an image, [H, W] or [H, W, 3] as RGB, without transparency. Only TIFFs are
    turned by their tag."""
    with PathManager.open(path, "rb") as file:
        pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:  # of a kind that Pillow alone reads, with one channel
        with Image.open(path) as image:
            return np.asarray(image)
    return pixels if pixels.ndim == 2 else pixels[:, :, 2::-1]


def value_range(path: str) -> np.ndarray:
    """The lowest and the highest value of an image, and both without the ``OUTERMOST``: [4]."""
    pixels = deep_pixels(path)
    return np.percentile(
        pixels[np.isfinite(pixels)], [0, 100, OUTERMOST, 100 - OUTERMOST], method="nearest"
    )


def advice(paths: Iterable[str], folder: str) -> str:
    """Say what to do about images of more than 8 bits: the range of their values, and the command
    that converts the folder by one scale."""
    ranges = np.array([value_range(path) for path in paths])
    (low, _, inner_low, _), (_, high, _, inner_high) = ranges.min(axis=0), ranges.max(axis=0)
    output = f"{folder.rstrip('/')}_8bit"
    call = f"convert({folder!r}, {output!r}, {inner_low:g}, {inner_high:g})"
    return (
        f"pixels of more than 8 bits, which no one scale suits: values from {low:g} to {high:g},"
        f" without the outermost {OUTERMOST:g} % of each image from {inner_low:g} to"
        f' {inner_high:g}: convert them: python -c "from dgnet_det.data.depth import convert;'
        f' {call}"'
    )


def convert(folder: str, output: str, low: float, high: float) -> None:
    """Write the images of a folder into another with 8 bits, upright, without transparency, under
    the same names: ``low`` becomes 0, ``high`` 255. Images of 8 bits stay as they are."""
    with folder_written_whole(Path(output)) as fresh:
        for path in filter(is_image, Path(folder).rglob("*")):
            target = fresh / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened(path, deep=True) as image:
                deep = is_deep(image)
                # TIFFs are turned by whoever decodes them.
                turn = None if image.format == "TIFF" else TURNS.get(orientation(image))
            if not deep:
                shutil.copyfile(path, target)
                continue
            scaled = (np.nan_to_num(deep_pixels(str(path)).astype(float)) - low) / (high - low)
            converted = Image.fromarray((scaled * 255).round().clip(0, 255).astype(np.uint8))
            (converted if turn is None else converted.transpose(turn)).save(target)
