"""Boxes of annotation files on the pixels of their images, which may have been resized or turned
since they were labelled."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as mask_tools

from dgnet_det.data.formats import LabelledObject, Labels
from dgnet_det.data.images import TURNS, opened, orientation, stored_size, upright_size
from dgnet_det.data.writing import LabelledImage
from dgnet_det.errors import UserError

Size = tuple[float, float]  # width and height
TURNED_BY_90 = (5, 6, 7, 8)  # EXIF's tags


class _Placement(NamedTuple):
    """The way from coordinates in an annotation file to pixels of the image as it is read."""

    space: Size  # of the labelled image, in the file's coordinates
    turn: int = 1  # the EXIF tag by which the labelled image is to be turned
    scale: Size = (1, 1)  # then

    def box(self, ltrb: tuple[float, ...]) -> list[float]:
        """[x, y, width, height] of left, top, right and bottom."""
        left, top, right, bottom = ltrb
        (x0, y0), (x1, y1) = self._turned(left, top), self._turned(right, bottom)
        x, y = self.scale
        return [min(x0, x1) * x, min(y0, y1) * y, abs(x1 - x0) * x, abs(y1 - y0) * y]

    def mask(self, mask: Any, size: tuple[int, int]) -> Any:
        """Polygons, or a run-length encoding, for an image of a size."""
        if isinstance(mask, list):
            points = ([self._point(*p) for p in zip(m[::2], m[1::2], strict=False)] for m in mask)
            return [[value for point in polygon for value in point] for polygon in points]
        if isinstance(mask["counts"], list):
            mask = mask_tools.frPyObjects(mask, *mask["size"])
        pixels = Image.fromarray(mask_tools.decode(mask))
        turned = pixels.transpose(TURNS[self.turn]) if self.turn in TURNS else pixels
        resized = np.asfortranarray(turned.resize(size, Image.Resampling.NEAREST))
        runs = mask_tools.encode(resized)
        return {"size": list(runs["size"]), "counts": runs["counts"].decode()}

    def keypoints(self, values: list[float]) -> Iterator[float]:
        """COCO's x, y and visibility of each, where x and y count pixels."""
        for x, y, seen in zip(values[::3], values[1::3], values[2::3], strict=True):
            px, py = self._point(x + 0.5, y + 0.5) if seen else (0.5, 0.5)
            yield from (px - 0.5, py - 0.5, seen)

    def _point(self, x: float, y: float) -> Size:
        x, y = self._turned(x, y)
        return x * self.scale[0], y * self.scale[1]

    def _turned(self, x: float, y: float) -> Size:
        if self.turn not in TURNED_BY_90:
            return x, y
        width, height = self.space
        return y if self.turn in (5, 8) else height - y, x if self.turn in (5, 6) else width - x


def place(
    path: Path, labels: Labels, ids: Mapping[str, int], origin: int
) -> tuple[LabelledImage, str]:
    """Place an image's objects on its pixels, with the ``ids`` of their classes, and say what was
    changed. With ``origin`` 1, coordinates count pixels from 1, both ends in the box.

    Raises:
        UserError: the image cannot be read, or its size and the one that is stated differ by more
            than one factor and a turn.
    """
    with opened(path) as image:
        stored, upright, tag = stored_size(image), upright_size(image), orientation(image)
    stated, turn, scale, told = labels.size, 1, (1.0, 1.0), ""
    space: Size = (1, 1) if labels.fractions else stated or upright
    if stated is not None and stated != upright:
        if not similar(stated, upright):
            if tag not in TURNED_BY_90 or not similar(stated, stored):
                raise UserError(
                    f"{path}: {_text(upright)} pixels, but its labels are for a size of"
                    f" {_text(stated)}, which is not that by one factor: give the images that were"
                    " labelled, or correct the size"
                )
            turn = tag
        changes = ["turned by its EXIF tag"] * (turn > 1)
        changes += ["scaled"] * (turn == 1 or stated != stored)
        told = f"its labels are for a size of {_text(stated)}: {' and '.join(changes)}"
    if told or labels.fractions:
        width, height = (space[1], space[0]) if turn > 1 else space
        scale = (upright[0] / width, upright[1] / height)
    placement, first = _Placement(space, turn, scale), 0 if labels.fractions else origin
    objects = [_annotation(x, ids[x.name], placement, first, upright) for x in labels.objects]
    return LabelledImage(path, upright, objects), told


def _annotation(
    found: LabelledObject, category_id: int, placement: _Placement, origin: int, size: tuple
) -> dict[str, Any]:
    """COCO's annotation of an object, without ids."""
    left, top, right, bottom = found.ltrb
    box = placement.box((left - origin, top - origin, right, bottom))
    area = box[2] * box[3]
    entry: dict[str, Any] = {"category_id": category_id, "bbox": box, "area": area}
    kept = dict(found.coco)
    if kept and (placement.turn > 1 or placement.scale != (1, 1)):
        x, y = placement.scale
        kept.pop("bbox", None)
        kept["area"] = kept.get("area", area / x / y) * x * y
        if "segmentation" in kept:
            kept["segmentation"] = placement.mask(kept["segmentation"], size)
        if "keypoints" in kept:
            kept["keypoints"] = list(placement.keypoints(kept["keypoints"]))
    return entry | kept | {"iscrowd": int(found.crowd)}


def similar(a: Size, b: Size) -> bool:
    """Whether two sizes differ by one factor alone, but for rounding to whole pixels."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def _text(size: Size) -> str:
    return f"{size[0]:g} × {size[1]:g}"
