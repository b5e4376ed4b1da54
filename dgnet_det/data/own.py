"""A user's own datasets: COCO JSON files and image folders that the config names."""

import os
from collections.abc import Collection
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from dgnet_det.data.checks import NUM_CLASSES_KEYS
from dgnet_det.data.classes import read_class_names, set_num_classes
from dgnet_det.data.tasks import register_keypoints, use_own_keypoints
from dgnet_det.errors import UserError


class OwnDataset(NamedTuple):
    """A split that the config names by its files. Its name in Detectron2's catalog is that of its
    JSON file."""

    split: str  # "TRAIN" or "VAL"
    json_file: str
    images: str


def own_datasets(cfg: CfgNode) -> list[OwnDataset]:
    """The datasets of ``DATASETS.TRAIN_JSON`` and ``DATASETS.VAL_JSON``, where they are set.

    Raises:
        UserError: a JSON file is named without its image folder, or the other way about.
    """
    datasets = []
    for split in ("TRAIN", "VAL"):
        json_file, images = cfg.DATASETS[f"{split}_JSON"], cfg.DATASETS[f"{split}_IMAGES"]
        if json_file and not images:
            raise UserError(
                f"DATASETS.{split}_IMAGES: empty: name the folder that holds the images of"
                f" {json_file}"
            )
        if images and not json_file:
            raise UserError(
                f"DATASETS.{split}_JSON: empty: name the COCO JSON file of the images in {images}"
            )
        if json_file:
            datasets.append(OwnDataset(split, json_file, images))
    return datasets


def register_own_datasets(cfg: CfgNode) -> None:
    """Register the config's own datasets in this process's catalog, in place of what has their
    names. Nothing is read yet but keypoints' names."""
    for dataset in own_datasets(cfg):
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(dataset.json_file, None)
        register_coco_instances(dataset.json_file, {}, dataset.json_file, dataset.images)
        if cfg.MODEL.KEYPOINT_ON and os.path.isfile(dataset.json_file):
            register_keypoints(dataset.json_file)


def use_own_datasets(cfg: CfgNode, given: Collection[str] = ()) -> None:
    """Register the config's own datasets, if it names any, and make the config follow them.

    ``DATASETS.TRAIN`` and ``DATASETS.TEST`` become theirs (empty for a split that is not named),
    and every meta-architecture's number of classes that of the training set, or of the validation
    set where that is the only one named. A file that is not there, as where a trained detector is
    deployed, leaves the number of classes as it was.

    Args:
        cfg: not frozen; changed in place.
        given: keys that the command line overrides. Those must not contradict the data.

    Raises:
        UserError: as :func:`own_datasets`; a JSON file is not in COCO format; an override
            contradicts the data.
    """
    datasets = own_datasets(cfg)
    if not datasets:
        return
    names = {dataset.split: (dataset.json_file,) for dataset in datasets}
    for key, split in (("TRAIN", "TRAIN"), ("TEST", "VAL")):
        own = names.get(split, ())
        if f"DATASETS.{key}" in given and tuple(cfg.DATASETS[key]) != own:
            raise UserError(
                f"DATASETS.{key} {cfg.DATASETS[key]}: the config names its data by"
                f" DATASETS.TRAIN_JSON and DATASETS.VAL_JSON; set those and their image folders to"
                " '' to use registered datasets"
            )
        cfg.DATASETS[key] = own
    register_own_datasets(cfg)

    json_file = datasets[0].json_file
    if not os.path.isfile(json_file):
        return
    count = len(read_class_names(json_file))
    for group in sorted(set(NUM_CLASSES_KEYS.values())):
        key, value = f"MODEL.{group}.NUM_CLASSES", cfg.MODEL[group].NUM_CLASSES
        if key in given and value != count:
            raise UserError(
                f"{key} {value}: {json_file} has {count} categories; leave the key out, the data"
                " decide"
            )
    set_num_classes(cfg, count)
    if cfg.MODEL.KEYPOINT_ON:
        use_own_keypoints(cfg, json_file, given)
