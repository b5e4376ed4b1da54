"""Data: the user's own datasets, their checks, and reading of images."""

from dgnet_det.data.checks import check_datasets
from dgnet_det.data.images import CheckedDatasetMapper, find_images, read_image, spread_images
from dgnet_det.data.own import load_cfg_with_data

__all__ = [
    "CheckedDatasetMapper",
    "check_datasets",
    "find_images",
    "load_cfg_with_data",
    "read_image",
    "spread_images",
]
