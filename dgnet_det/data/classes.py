"""The names and the number of classes."""

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dgnet_det.config import NUM_CLASSES_KEYS
from dgnet_det.data.coco import category_names


def dataset_class_names(datasets: Sequence[str]) -> list[str]:
    """The class names of the first of some registered datasets that tells; empty if none does."""
    for name in datasets:
        if name not in DatasetCatalog:
            continue
        metadata = MetadataCatalog.get(name)
        if metadata.get("thing_classes"):
            return list(metadata.thing_classes)
        if os.path.isfile(metadata.get("json_file", "")):
            return category_names(metadata.json_file)
    return []


def class_names(cfg: CfgNode) -> list[str]:
    """The names of the classes that a config's model predicts, in the order of its outputs: those
    of the config's datasets if they are as many as the model's, else ``class 0`` and so on."""
    names = dataset_class_names([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    group = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    count = cfg.MODEL[group].NUM_CLASSES if group else len(names)
    return names if len(names) == count else [f"class {i}" for i in range(count)]


def set_num_classes(cfg: CfgNode, count: int) -> None:
    """Set the number of classes of every meta-architecture. ``cfg`` is not frozen."""
    for group in set(NUM_CLASSES_KEYS.values()):
        cfg.MODEL[group].NUM_CLASSES = count
