"""Data: the user's own datasets, their checks, and reading of images."""

from dgnet_det.data.checks import CheckedDatasetMapper, check_datasets
from dgnet_det.data.images import find_images, read_image, spread_images

__all__ = [
    "CheckedDatasetMapper",
    "check_datasets",
    "find_images",
    "read_image",
    "spread_images",
]
