"""This project's own datasets in Detectron2's catalog."""

import os

from detectron2.data.datasets import register_coco_instances

TREE_CROWNS = "tree_crowns"  # written by studies/prepare_tree_crowns.py
SPLITS = ("train", "val")
COMPOSED_SCENES = "composed_scenes"  # written by studies/run_study.py
SCENE_SPLITS = ("train", "test")


def datasets_root() -> str:
    """The folder that holds the datasets, as for Detectron2's own: ``$DETECTRON2_DATASETS``, else
    ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_datasets(root: str) -> None:
    """Register ``tree_crowns_train`` and so on: images in ``root/tree_crowns/train``, COCO JSON in
    ``root/tree_crowns/annotations/train.json``."""
    for name, splits in ((TREE_CROWNS, SPLITS), (COMPOSED_SCENES, SCENE_SPLITS)):
        for split in splits:
            register_coco_instances(
                f"{name}_{split}",
                {},
                os.path.join(root, name, "annotations", f"{split}.json"),
                os.path.join(root, name, split),
            )
