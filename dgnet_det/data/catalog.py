"""This project's own datasets in Detectron2's catalog."""

import os

from detectron2.data.datasets import register_coco_instances

COMPOSED_SCENES = "composed_scenes"  # written by studies/run_study.py
SCENE_SPLITS = ("train", "test")


def datasets_root() -> str:
    """The folder that holds the datasets, as for Detectron2's own: ``$DETECTRON2_DATASETS``, else
    ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_datasets(root: str) -> None:
    """Register ``composed_scenes_train`` and ``composed_scenes_test``."""
    for split in SCENE_SPLITS:
        register_coco_instances(
            f"{COMPOSED_SCENES}_{split}",
            {},
            os.path.join(root, COMPOSED_SCENES, "annotations", f"{split}.json"),
            os.path.join(root, COMPOSED_SCENES, split),
        )
