"""Data: checks of the user's own, and reading of images."""

from dgnet_det.data.catalog import datasets_root
from dgnet_det.data.checks import CheckedDatasetMapper, check_datasets
from dgnet_det.data.images import find_images, read_image, spread_images

__all__ = [
    "CheckedDatasetMapper",
    "check_datasets",
    "datasets_root",
    "find_images",
    "read_image",
    "spread_images",
]
