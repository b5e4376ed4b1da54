"""Write a detection set of four kinds of pictures, PNG files and COCO JSON, to train one detector
for several data sets. Each kind has a class of its own.

- *tree*: the aerial photographs of the package `deepforest`, see `studies.tree_crowns`;
- *nucleus*: the fluorescence microscopy picture of the package `stardist`, boxes around its masks;
- *product*: scenes composed of Fashion-MNIST's images, see `studies.scenes`;
- *word*: composed pages of random words in matplotlib's DejaVu fonts.

All pictures have ``TILE`` × ``TILE`` pixels. Training has as many of each kind: of photographs,
crops at random places above the gap; their bottom quarter is for validation, as in
`studies.tree_crowns`. Scenes and pages are no photographs.

Example:
    python -m studies.mixed_kinds --output datasets/mixed_kinds
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import find_objects
from skimage import data

from dgnet_cli import arguments
from dgnet_det.data.classification import fashion_mnist
from dgnet_det.utils.files import folder_written_whole
from studies.coco import write_split
from studies.scenes import PHOTOGRAPHS, SIZE, compose
from studies.tree_crowns import GAP, boxes_within, find_file, find_photographs, read_voc_boxes

FOLDER = Path("datasets/mixed_kinds")  # where configs/Mixed-Kinds looks
KINDS = ("tree", "nucleus", "product", "word")
NUCLEI = "stardist==0.9.2"
TILE = SIZE
NUM_TILES = {"train": 200, "val": 100}  # of each kind; of photographs, at most
SEED = 0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")

Objects = list[list[float]]  # x, y, width, height


class Picture(NamedTuple):
    """A photograph and its boxes, [K, 4] as xmin, ymin, xmax, ymax."""

    pixels: Image.Image
    boxes: np.ndarray


def tree_crowns() -> list[Picture]:
    """The aerial photographs."""
    return [
        Picture(Image.open(photograph.image).convert("RGB"), read_voc_boxes(photograph.annotation))
        for photograph in find_photographs()
    ]


def nuclei() -> list[Picture]:
    """The microscopy picture: its brightest per cent is white."""
    intensity = np.asarray(Image.open(find_file(NUCLEI, "img2d.tif"))).astype(float)
    bright = np.clip(255 * intensity / np.percentile(intensity, 99), 0, 255).astype(np.uint8)
    masks = np.asarray(Image.open(find_file(NUCLEI, "mask2d.tif"))).astype(np.int32)
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in filter(None, find_objects(masks))]
    return [Picture(Image.fromarray(bright).convert("RGB"), np.array(boxes, float))]


def tiles_of(
    pictures: Sequence[Picture], split: str, count: int, rng: np.random.Generator
) -> Iterator[tuple[Image.Image, Objects]]:
    """Tiles of photographs: for training ``count`` at random places, of each photograph as many as
    its size deserves; for validation, side by side, ``count`` at most."""
    places = []
    for picture in pictures:
        width, height = picture.pixels.size
        val_top = height - height // 4
        if split == "val":
            rows, columns = (
                range(val_top, height - TILE + 1, TILE),
                range(0, width - TILE + 1, TILE),
            )
            places += [(picture, x, y) for y in rows for x in columns]
        else:
            share = width * height / sum(np.prod(p.pixels.size) for p in pictures)
            for _ in range(round(share * count)):
                x, y = rng.integers((width - TILE + 1, val_top - GAP - TILE + 1))
                places.append((picture, int(x), int(y)))
    chosen = sorted(rng.permutation(len(places))[:count])
    for picture, x, y in (places[k] for k in chosen):
        boxes = boxes_within(picture.boxes, x, y, TILE)
        yield picture.pixels.crop((x, y, x + TILE, y + TILE)), boxes.tolist()


def scenes(
    split: str, count: int, rng: np.random.Generator
) -> Iterator[tuple[Image.Image, Objects]]:
    """Composed scenes of products."""
    products = fashion_mnist(split)
    names = PHOTOGRAPHS["train" if split == "train" else "test"]
    photographs = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]
    for k in range(count):
        scene, items = compose(photographs[k % len(photographs)], products, rng)
        yield scene, [[x0, y0, x1 - x0, y1 - y0] for _, (x0, y0, x1, y1) in items]


def page(rng: np.random.Generator) -> tuple[Image.Image, Objects]:
    """A page of random words: one font, ink and paper, lines from the top to the bottom; a word's
    box is the tight one around its ink."""
    size = int(rng.integers(9, 19))
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    font = ImageFont.truetype(str(folder / rng.choice(FONTS)), size)
    paper, ink = rng.integers(190, 256, 3), rng.integers(0, 90, 3)
    if rng.random() < 0.3:
        paper, ink = ink, paper
    picture = Image.new("RGB", (TILE, TILE), tuple(map(int, paper)))
    draw, boxes = ImageDraw.Draw(picture), []
    y = int(rng.integers(2, size))
    while y + 1.3 * size < TILE:
        x = int(rng.integers(2, 2 * size))
        while True:
            word = "".join(rng.choice(list(LETTERS), int(rng.integers(2, 9))))
            left, top, right, bottom = draw.textbbox((x, y), word, font=font)
            if right > TILE - 2:
                break
            draw.text((x, y), word, fill=tuple(map(int, ink)), font=font)
            boxes.append([float(v) for v in (left, top, right - left, bottom - top)])
            x = int(right) + int(rng.integers(size // 2, 3 * size))
        y += int(size * rng.uniform(1.3, 2.5))
    return picture, boxes


def pages(count: int, rng: np.random.Generator) -> Iterator[tuple[Image.Image, Objects]]:
    """Pages with at least one word."""
    while count:
        picture, boxes = page(rng)
        if boxes:
            count -= 1
            yield picture, boxes


def write_mixed_kinds(target: Path, num_tiles: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Write the tiles and the COCO JSON of both splits to the folder ``target``, replacing what is
    there only when all of it is written; the numbers of images and of boxes of each split.

    Raises:
        UserError: a wheel is not installed, or Fashion-MNIST cannot be had.
    """
    trees, cells = tree_crowns(), nuclei()
    with folder_written_whole(target) as folder:
        written = {}
        for index, (split, count) in enumerate(num_tiles.items()):
            rng = np.random.default_rng([SEED, index])
            kinds = {
                "tree": tiles_of(trees, split, count, rng),
                "nucleus": tiles_of(cells, split, count, rng),
                "product": scenes(split, count, rng),
                "word": pages(count, rng),
            }
            items = (
                (f"{kind}_{k:04d}.png", picture, [(KINDS.index(kind), box) for box in boxes])
                for kind, tiles in kinds.items()
                for k, (picture, boxes) in enumerate(tiles)
            )
            info = {"description": f"Four kinds of pictures, {split}"}
            written[split] = write_split(folder, split, KINDS, info, items)
    return written


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=FOLDER, metavar="FOLDER", help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    for split, (images, boxes) in write_mixed_kinds(args.output, NUM_TILES).items():
        print(f"{split}: {images} images, {boxes} boxes")
    print(f"written to {args.output}")


if __name__ == "__main__":
    arguments.run(main)
