"""Data: the default detection set, checks of the user's own, and reading of images.

Importing this package registers ``tree_crowns_train`` and ``tree_crowns_val``.
"""

from .catalog import datasets_root, register_tree_crowns
from .checks import CheckedDatasetMapper, check_datasets
from .images import find_images, read_image, spread_images

__all__ = [
    "CheckedDatasetMapper",
    "check_datasets",
    "datasets_root",
    "find_images",
    "read_image",
    "register_tree_crowns",
    "spread_images",
]

register_tree_crowns(datasets_root())
