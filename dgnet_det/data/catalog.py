"""The default detection set's entries in Detectron2's catalog."""

import os

from detectron2.data.datasets import register_coco_instances

TREE_CROWNS = "tree_crowns"
SPLITS = ("train", "val")


def datasets_root() -> str:
    """The folder that holds the datasets, as for Detectron2's own: ``$DETECTRON2_DATASETS``, else
    ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_tree_crowns(root: str) -> None:
    """Register ``tree_crowns_train`` and ``tree_crowns_val``, which
    ``tools/prepare_tree_crowns.py`` writes under ``root``."""
    folder = os.path.join(root, TREE_CROWNS)
    for split in SPLITS:
        register_coco_instances(
            f"{TREE_CROWNS}_{split}",
            {},
            os.path.join(folder, "annotations", f"{split}.json"),
            os.path.join(folder, split),
        )
