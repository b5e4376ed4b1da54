"""A user's own datasets: COCO JSON files and image folders that the config names."""

import logging
import os
from collections.abc import Collection, Sequence
from functools import partial, reduce

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dgnet_det.config import NUM_CLASSES_KEYS, load_cfg
from dgnet_det.data.coco import category_names, load_dicts, read_coco
from dgnet_det.errors import UserError

NUM_COCO_KEYPOINTS = 17  # for which COCO gives the spreads that its metric uses


def load_cfg_with_data(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """As :func:`load_cfg`, with the config's own datasets, which it follows.

    Raises:
        UserError: as :func:`load_cfg` and :func:`use_own_datasets`.
    """
    cfg = load_cfg(config_file, opts).clone()
    cfg.defrost()
    use_own_datasets(cfg, given=opts[::2])
    cfg.freeze()
    return cfg


def use_own_datasets(cfg: CfgNode, given: Collection[str] = ()) -> None:
    """Register the config's own datasets, if it names any, and make the config follow them.

    ``DATASETS.TRAIN`` and ``DATASETS.TEST`` become theirs (empty for a split that is not named),
    and every meta-architecture's number of classes, and of keypoints, that of the training set, or
    of the validation set where that is the only one named. A file that is not there, as where a
    trained detector is deployed, leaves these numbers as they were.

    Args:
        cfg: not frozen; changed in place.
        given: keys that the user overrides. Those must not contradict the data.

    Raises:
        UserError: a JSON file is named without its image folder, or the other way about, or is not
            in COCO format; an override contradicts the data.
    """
    named = _own_datasets(cfg)
    if not named:
        return
    for key, split in (("TRAIN", "TRAIN"), ("TEST", "VAL")):
        own = (named[split][0],) if split in named else ()
        if f"DATASETS.{key}" in given and tuple(cfg.DATASETS[key]) != own:
            raise UserError(
                f"DATASETS.{key} {cfg.DATASETS[key]}: the config names its data by"
                " DATASETS.TRAIN_JSON and DATASETS.VAL_JSON; set those and their image folders to"
                " '' to use registered datasets"
            )
        cfg.DATASETS[key] = own
    register_own_datasets(cfg)

    json_file = next(iter(named.values()))[0]
    if not os.path.isfile(json_file):
        return
    groups = sorted(set(NUM_CLASSES_KEYS.values()))
    counts = {f"MODEL.{g}.NUM_CLASSES": len(category_names(json_file)) for g in groups}
    if cfg.MODEL.KEYPOINT_ON:
        keypoints = MetadataCatalog.get(json_file).keypoint_names
        counts["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] = len(keypoints)
    for key, count in counts.items():
        noun = "keypoints" if "KEYPOINT" in key else "categories"
        value = reduce(getattr, key.split("."), cfg)
        if key in given and value != count:
            raise UserError(
                f"{key} {value}: {json_file} has {count} {noun}; leave the key out, the data decide"
            )
        cfg.merge_from_list([key, count])
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or NUM_COCO_KEYPOINTS
    if cfg.MODEL.KEYPOINT_ON and sigmas != len(keypoints):
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS: {sigmas} values, but {json_file} has {len(keypoints)}"
            " keypoints: give one for each, its annotators' spread as a share of the object's size;"
            " COCO's are 0.026 (eyes) to 0.107 (hips)"
        )


def register_own_datasets(cfg: CfgNode) -> None:
    """Register the config's own datasets in this process's catalog, in place of what has their
    names, which are those of their JSON files. Nothing is read yet but keypoints' names."""
    for json_file, images in _own_datasets(cfg).values():
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(json_file, None)
        load = partial(load_dicts, json_file, json_file, images, cfg.MODEL.MASK_ON)
        DatasetCatalog.register(json_file, load)
        MetadataCatalog.get(json_file).set(
            json_file=json_file, image_root=images, evaluator_type="coco"
        )
        if cfg.MODEL.KEYPOINT_ON and os.path.isfile(json_file):
            _register_keypoints(json_file)


def _own_datasets(cfg: CfgNode) -> dict[str, tuple[str, str]]:
    """The JSON file and image folder of each split that the config names by its files."""
    named = {}
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
            named[split] = json_file, images
    return named


def _register_keypoints(json_file: str) -> None:
    """Tell Detectron2's catalog the keypoints of a file. In mirrored images, each whose name has
    "left" in it changes places with the one that has "right" instead."""
    found = [c["keypoints"] for c in read_coco(json_file)["categories"] if c.get("keypoints")]
    if not found or any(names != found[0] for names in found):
        raise UserError(
            f"{json_file}: MODEL.KEYPOINT_ON needs the keypoints' names, the same ones, as"
            " 'keypoints' of its categories"
        )
    names = list(map(str, found[0]))
    swapped = {name: name.replace("left", "right") for name in names if "left" in name}
    flip_map = [pair for pair in swapped.items() if pair[1] in names]
    MetadataCatalog.get(json_file).set(keypoint_names=names, keypoint_flip_map=flip_map)
    logging.getLogger(__name__).info(
        "%s: keypoints %s; in mirrored images these change places: %s",
        json_file,
        ", ".join(names),
        ", ".join(f"{a} and {b}" for a, b in flip_map) or "none",
    )
