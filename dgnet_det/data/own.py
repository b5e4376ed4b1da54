"""Datasets that a config names by COCO JSON files and image folders, and datasets' classes."""

import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from dgnet_det.config import NUM_CLASSES_KEYS, load_cfg
from dgnet_det.data.coco import ALONE, category_names, keypoint_pairs, read_coco
from dgnet_det.errors import UserError

NUM_COCO_KEYPOINTS = 17  # for which COCO gives the spreads that its metric uses


def load_cfg_with_data(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Load a config as :func:`load_cfg` does, register the datasets that it names by files, and let
    it follow them.

    ``DATASETS.TRAIN`` and ``DATASETS.TEST`` become these datasets (empty for a split that is not
    named). The numbers of classes and keypoints become those of the first split that is named, and
    ``INPUT.MASK_FORMAT`` becomes ``bitmask`` where it has run-length encodings; a file that is not
    there, as where a trained detector is deployed, leaves them as they were.

    Raises:
        UserError: as :func:`load_cfg`; a JSON file or its image folder is named alone, or the file
            is not in COCO format; one of ``opts`` contradicts the data.
    """
    cfg = load_cfg(config_file, opts).clone()
    cfg.defrost()
    given = dict(zip(opts[::2], opts[1::2], strict=True))
    named = _own_datasets(cfg)
    for key, split in (("TRAIN", "TRAIN"), ("TEST", "VAL")) if named else ():
        own = (named[split][0],) if split in named else ()
        if f"DATASETS.{key}" in given and tuple(cfg.DATASETS[key]) != own:
            raise UserError(
                f"DATASETS.{key} {cfg.DATASETS[key]}: the config names its data by"
                " DATASETS.TRAIN_JSON and DATASETS.VAL_JSON; set those and their image folders to"
                " '' to use registered datasets"
            )
        cfg.DATASETS[key] = own
    register_own_datasets(cfg)
    files = [json_file for json_file, _ in named.values()]
    if files and os.path.isfile(files[0]):
        _follow(cfg, files[0], given)
    cfg.freeze()
    return cfg


def _follow(cfg: CfgNode, json_file: str, given: dict[str, str]) -> None:
    """Set the numbers of classes and of keypoints, and the format of masks, to a file's."""
    count = len(category_names(json_file))
    counts = {f"MODEL.{group}.NUM_CLASSES": count for group in set(NUM_CLASSES_KEYS.values())}
    if cfg.MODEL.KEYPOINT_ON:
        count = len(MetadataCatalog.get(json_file).keypoint_names)
        counts["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] = count
        sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or NUM_COCO_KEYPOINTS
        if sigmas != count:
            raise UserError(
                f"TEST.KEYPOINT_OKS_SIGMAS: {sigmas} values, but {json_file} has {count} keypoints:"
                " give one for each, its annotators' spread as a share of the object's size;"
                " COCO's are 0.026 (eyes) to 0.107 (hips)"
            )
    for key, count in counts.items():
        if str(given.get(key, count)) != str(count):
            noun = "keypoints" if "KEYPOINT" in key else "categories"
            raise UserError(
                f"{key} {given[key]}: {json_file} has {count} {noun}; leave the key out, the data"
                " decide"
            )
        cfg.merge_from_list([key, count])
    masks = (a.get("segmentation") for a in read_coco(json_file)["annotations"] if type(a) is dict)
    if "INPUT.MASK_FORMAT" not in given and any(type(mask) is dict for mask in masks):
        cfg.INPUT.MASK_FORMAT = "bitmask"  # run-length encodings, which are no polygons


def register_own_datasets(cfg: CfgNode) -> None:
    """Register the datasets that a config names by files, under the names of their JSON files, in
    this process's catalog. Nothing is read yet but keypoints' names."""
    for json_file, images in _own_datasets(cfg).values():
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(json_file, None)
        register_coco_instances(json_file, {}, json_file, images)
        if cfg.MODEL.KEYPOINT_ON and os.path.isfile(json_file):
            _register_keypoints(json_file)


def _own_datasets(cfg: CfgNode) -> dict[str, tuple[str, str]]:
    """The JSON file and image folder of each split that the config names by its files."""
    named = {}
    for split in ("TRAIN", "VAL"):
        json_file, images = cfg.DATASETS[f"{split}_JSON"], cfg.DATASETS[f"{split}_IMAGES"]
        if bool(json_file) != bool(images):
            missing = f"{split}_IMAGES" if json_file else f"{split}_JSON"
            raise UserError(
                f"DATASETS.{missing}: empty: {json_file or images} needs both keys, the COCO JSON"
                " file and the folder that holds its images"
            )
        if json_file:
            named[split] = json_file, images
    return named


def _register_keypoints(json_file: str) -> None:
    """Register the keypoints of a file, and which change places in mirrored images."""
    found = [c["keypoints"] for c in read_coco(json_file)["categories"] if c.get("keypoints")]
    if not found or any(names != found[0] for names in found):
        raise UserError(
            f"{json_file}: MODEL.KEYPOINT_ON needs the keypoints' names, the same ones, as"
            " 'keypoints' of its categories"
        )
    names = list(map(str, found[0]))
    flip_map, alone = keypoint_pairs(names)
    MetadataCatalog.get(json_file).set(keypoint_names=names, keypoint_flip_map=flip_map)
    swaps = ", ".join(f"{a} and {b}" for a, b in flip_map) or "none"
    message = "%s: keypoints %s; in mirrored images these change places: %s"
    log = logging.getLogger(__name__)
    log.info(message, json_file, ", ".join(names), swaps)
    if alone:
        log.warning(f"{json_file}: {ALONE.format(', '.join(alone))}")


def dataset_class_names(datasets: Sequence[str]) -> list[str]:
    """The class names of the first registered dataset that has any; empty if none has."""
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
    """The names of a model's classes, in the order of its outputs: those of the config's datasets
    if they are as many, else ``class 0`` and so on."""
    names = dataset_class_names([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    group = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    count = cfg.MODEL[group].NUM_CLASSES if group else len(names)
    return names if len(names) == count else [f"class {i}" for i in range(count)]


def set_num_classes(cfg: CfgNode, count: int) -> None:
    """Set the number of classes of every meta-architecture. ``cfg`` is not frozen."""
    for group in set(NUM_CLASSES_KEYS.values()):
        cfg.MODEL[group].NUM_CLASSES = count
