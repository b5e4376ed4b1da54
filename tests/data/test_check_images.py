"""``dgnet check``: what it says of odd images and of masks."""

import re
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.checked_sets import MASK, change, found, inspect
from helpers.coco_sets import HEIGHT, WIDTH, Splits
from helpers.configs import ROOT
from helpers.imported_sets import turned_by
from PIL import Image
from pycocotools import mask as mask_tools


@pytest.mark.parametrize("ending", ["jpg", "tif", "png"])
def test_images_that_are_turned(splits: Splits, ending: str) -> None:
    """The JSON may give their size as it is stored, which is not the one that is read."""
    image = Image.open(splits.train.path(2))
    image.save(splits.train.images / f"t.{ending}", exif=turned_by(6))
    change(splits, "images", 2, file_name=f"t.{ending}")
    line = found(inspect(splits), "errors", "image-size")
    assert "72 × 96 pixels, but width and height say 96 × 72 before its EXIF tag turns it" in line
    change(splits, "images", 2, width=HEIGHT, height=WIDTH)
    change(splits, "annotations", 5, bbox=[1, 2, 3, 4])
    report = inspect(splits)
    assert report["errors"] == []
    assert "its EXIF tag turns it" in report["warnings"][-1]["line"]


def test_images_of_16_bits(splits: Splits) -> None:
    """The range of all is told, and the command that converts them, which is run."""
    rng = np.random.default_rng(0)
    for number, high in ((2, 200), (3, 3000)):
        pixels = rng.integers(7, high + 1, (HEIGHT, WIDTH, 3), dtype=np.uint16)
        pixels[0, 0], pixels[0, 1] = 7, high
        cv2.imwrite(str(splits.train.images / f"{number}.png"), pixels)
        change(splits, "images", number, file_name=f"{number}.png")
    line = found(inspect(splits), "errors", "image-16-bit")
    assert "2.png: pixels of more than 8 bits, which no one scale suits: values from 7 to" in line
    assert "values from 7 to 3000, without the outermost 0.1 %" in line
    assert line.endswith("(and 1 more)")
    (code,) = re.findall('python -c "(.*)"', line)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    splits.train.images = splits.root / "train_8bit"
    assert inspect(splits)["errors"] == []


@pytest.mark.parametrize(
    ("mode", "ending", "kind", "part"),
    [
        ("P", "png", "image-mode-P", "a palette"),
        ("RGBA", "png", "image-mode-RGBA", "transparency, which is dropped"),
        ("CMYK", "jpg", "image-mode-CMYK", "CMYK colours, as for print"),
        ("1", "png", "image-mode-1", "only black and white"),
        ("L", "gif", "image-animation", "holds several pictures: only the first is read"),
    ],
)
def test_odd_images(splits: Splits, mode: str, ending: str, kind: str, part: str) -> None:
    picture = Image.open(splits.train.path(2)).convert(mode)
    pages = {"save_all": True, "append_images": [picture.rotate(180)]} if ending == "gif" else {}
    picture.save(splits.train.images / f"odd.{ending}", **pages)
    change(splits, "images", 2, file_name=f"odd.{ending}")
    assert part in {w["kind"]: w["line"] for w in inspect(splits)["warnings"]}[kind]


TRIANGLE = [[4.0, 6.0, 34.0, 6.0, 34.0, 26.0]]


def runs(height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    """A random mask in COCO's compressed runs, by its own tools."""
    mask = np.random.default_rng(0).integers(0, 2, (height, width), dtype=np.uint8)
    mask[:, 20:80] = 1  # a long run
    return {
        "size": [height, width],
        "counts": mask_tools.encode(np.asfortranarray(mask))["counts"].decode(),
    }


@pytest.mark.parametrize(
    ("mask", "severity", "part"),
    [
        (TRIANGLE, None, ""),
        (runs(), None, ""),
        ({"size": [HEIGHT, WIDTH], "counts": [70, HEIGHT * WIDTH - 70]}, None, ""),
        (..., "errors", "annotation 5: has no 'segmentation': give a mask, as MODEL.MASK_ON wants"),
        ([], "errors", "segmentation [] is not a mask"),
        ("garbage", "errors", "segmentation 'garbage' is not a mask"),
        ({"size": [HEIGHT, WIDTH], "counts": "garbage"}, "errors", "its mask does not fill the"),
        ({"size": [HEIGHT, WIDTH], "counts": "0000"}, "errors", "does not fill the image of 96 ×"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "errors", "does not fill the image of 96 × 72"),
        ({"size": [HEIGHT, WIDTH], "counts": [70, 10]}, "errors", "its mask does not fill the im"),
        ({"size": [HEIGHT], "counts": [70]}, "errors", "is not a mask, as MODEL.MASK_ON wants"),
        (runs(WIDTH, HEIGHT), "errors", "its mask does not fill the image of 96 × 72"),
        ([[1.0, 2.0, 3.0, 4.0]], "warnings", "no polygon of three corners"),
    ],
)
def test_masks(splits: Splits, mask: Any, severity: str | None, part: str) -> None:
    for split in (splits.train, splits.val):
        for each in split.coco["annotations"]:
            each["segmentation"] = TRIANGLE
        split.write()
    change(splits, "annotations", 5, segmentation=mask)
    report = inspect(splits, "--config-file", MASK)
    lines = {key: [finding["line"] for finding in report[key]] for key in ("errors", "warnings")}
    if severity:
        (line,) = lines[severity]
        assert part in line
        return
    assert lines == {"errors": [], "warnings": []}
    if isinstance(mask, dict):
        report = inspect(splits, "--config-file", MASK, "INPUT.MASK_FORMAT", "polygon")
        line = found(report, "errors", "mask-format")
        assert "annotation 5: its mask is no polygon: set INPUT.MASK_FORMAT bitmask" in line
