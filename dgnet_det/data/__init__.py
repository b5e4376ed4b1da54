"""Data: the default detection set, checks of the user's own, and reading of images.

Importing this package registers this project's own datasets in Detectron2's catalog.
"""

from dgnet_det.data.catalog import datasets_root, register_datasets
from dgnet_det.data.checks import CheckedDatasetMapper, check_datasets
from dgnet_det.data.images import find_images, read_image, spread_images

__all__ = [
    "CheckedDatasetMapper",
    "check_datasets",
    "datasets_root",
    "find_images",
    "read_image",
    "register_datasets",
    "spread_images",
]

register_datasets(datasets_root())
