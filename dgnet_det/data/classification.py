"""Labelled images: ImageNet-style folders and Fashion-MNIST."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from dgnet_det.data import datasets_root
from dgnet_det.errors import UserError

# Where the Debian package `dataset-fashion-mnist` puts its files.
FASHION_MNIST_SYSTEM_FOLDER = "/usr/share/datasets/fashion-mnist"


class FashionMNIST(Dataset):
    """One split of Fashion-MNIST, as RGB images of 28×28 pixels and labels 0 to 9."""

    classes = tuple(datasets.FashionMNIST.classes)

    def __init__(self, folder: Path, split: str) -> None:
        """
        Args:
            folder: from :func:`find_fashion_mnist`.
            split: ``train`` (60 000 images) or ``val`` (10 000).

        Raises:
            UserError: a file that is missing or damaged.
        """
        prefix = {"train": "train", "val": "t10k"}[split]
        self.images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", header=16)
        self.images = self.images.reshape(-1, 28, 28)
        self.labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", header=8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.labels[index])


def find_fashion_mnist() -> Path:
    """The folder of Fashion-MNIST's four files: in ``$DETECTRON2_DATASETS`` (``fashion-mnist``, or
    as torchvision leaves it), in the system's data folder, or downloaded by torchvision.

    Raises:
        UserError: it is not there and cannot be downloaded.
    """
    root = Path(datasets_root())
    downloaded = root / "FashionMNIST" / "raw"
    for folder in (root / "fashion-mnist", downloaded, Path(FASHION_MNIST_SYSTEM_FOLDER)):
        if any(folder.glob("t10k-images-idx3-ubyte*")):
            return folder
    try:
        datasets.FashionMNIST(str(root), download=True)
    except Exception as error:  # urllib's and torchvision's kinds, and what a proxy makes of them
        raise UserError(
            f"Fashion-MNIST: not in {root / 'fashion-mnist'}, and it cannot be downloaded"
            f" ({str(error).splitlines()[0]}): put its four .gz files there, or install the Debian"
            " package dataset-fashion-mnist"
        ) from error
    return downloaded


def build_datasets(cfg: CfgNode) -> tuple[Dataset, Dataset]:
    """The training and validation images that ``CLASSIFICATION`` names, as (RGB image, label).

    Raises:
        UserError: a folder that is missing or empty, class folders that differ between ``train``
            and ``val``, or a number of classes other than ``CLASSIFICATION.NUM_CLASSES``.
    """
    options = cfg.CLASSIFICATION
    train: datasets.ImageFolder | FashionMNIST
    val: datasets.ImageFolder | FashionMNIST
    if options.DATASET == "imagefolder":
        train, val = (_image_folder(Path(options.ROOT) / split) for split in ("train", "val"))
        differing = sorted(set(train.classes) ^ set(val.classes))
        if differing:
            raise UserError(
                f"{options.ROOT}: class folders that are in only one of train and val:"
                f" {', '.join(differing[:5])}{' …' if len(differing) > 5 else ''}; make the two"
                " alike"
            )
    elif options.DATASET == "fashion_mnist":
        folder = find_fashion_mnist()
        train, val = FashionMNIST(folder, "train"), FashionMNIST(folder, "val")
    else:
        raise UserError(
            f"CLASSIFICATION.DATASET {options.DATASET!r}: choose from imagefolder, fashion_mnist"
        )
    if len(train.classes) != options.NUM_CLASSES:
        raise UserError(
            f"CLASSIFICATION.NUM_CLASSES {options.NUM_CLASSES}: the data has {len(train.classes)}"
            " classes; set it to that"
        )
    return train, val


def _image_folder(folder: Path) -> datasets.ImageFolder:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set CLASSIFICATION.ROOT to the one above it")
    try:
        return datasets.ImageFolder(str(folder), loader=_read_image)
    except FileNotFoundError as error:  # no class folders, or one without images
        raise UserError(f"{folder}: {str(error).splitlines()[0]}") from error


def _read_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises a dozen kinds
        raise UserError(f"{path}: cannot be read as an image; replace or remove it") from error


def _read_idx(folder: Path, name: str, *, header: int) -> np.ndarray:
    """The bytes after the header of an IDX file, gzipped or not."""
    path = folder / name
    try:
        if path.exists():
            data = path.read_bytes()
        else:
            data = gzip.decompress(Path(f"{path}.gz").read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}.gz: missing or damaged; fetch Fashion-MNIST again") from error
    shape = np.frombuffer(data[4:header], ">u4")  # after a magic number
    if not len(shape) or len(data) - header != shape.prod():
        raise UserError(f"{path}: damaged; fetch Fashion-MNIST again")
    return np.frombuffer(data, np.uint8, offset=header)
