"""What Mask R-CNN and Keypoint R-CNN want of a dataset beside boxes."""

import logging
from collections.abc import Collection
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from dgnet_det.data.coco_checks import read_coco
from dgnet_det.errors import UserError

NUM_COCO_KEYPOINTS = 17  # for which COCO gives the spreads that its metric uses


def check_tasks(cfg: CfgNode, json_file: str, coco: dict[str, Any]) -> None:
    """Check that every object of a COCO JSON file's content has the masks and keypoints that the
    config's model learns.

    Raises:
        UserError: one has not.
    """
    objects = [a for a in coco.get("annotations", ()) if not a.get("iscrowd")]
    if cfg.MODEL.MASK_ON:
        for annotation in objects:
            if not annotation.get("segmentation"):
                raise UserError(
                    f"{json_file}: annotation {annotation['id']} has no 'segmentation', which every"
                    " object needs: add masks, or set MODEL.MASK_ON False to learn boxes alone"
                )
    if cfg.MODEL.KEYPOINT_ON:
        count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        for annotation in objects:
            given = len(annotation.get("keypoints", ()))
            if given != 3 * count or "num_keypoints" not in annotation:
                raise UserError(
                    f"{json_file}: annotation {annotation['id']} has {given} numbers as"
                    f" 'keypoints': every object needs {3 * count} (x, y, visibility for each of"
                    f" MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {count}), and 'num_keypoints', how"
                    " many are labelled"
                )


def register_keypoints(json_file: str) -> None:
    """Tell Detectron2's catalog the keypoints of a COCO JSON file that is registered under its
    path.

    In mirrored images, each whose name has "left" in it changes places with the one that has
    "right" instead.

    Raises:
        UserError: no category names keypoints, or two name different ones.
    """
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


def use_own_keypoints(cfg: CfgNode, json_file: str, given: Collection[str]) -> None:
    """Make the config follow the keypoints of its own dataset.

    Args:
        cfg: not frozen; changed in place.
        json_file: of the dataset, which :func:`register_keypoints` has seen.
        given: keys that the command line overrides. Those must not contradict the data.

    Raises:
        UserError: an override contradicts the data, or the metric does not know these keypoints.
    """
    count = len(MetadataCatalog.get(json_file).keypoint_names)
    key, head = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", cfg.MODEL.ROI_KEYPOINT_HEAD
    if key in given and count != head.NUM_KEYPOINTS:
        raise UserError(
            f"{key} {head.NUM_KEYPOINTS}: {json_file} has {count}; leave the key out, the data"
            " decide"
        )
    head.NUM_KEYPOINTS = count
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or NUM_COCO_KEYPOINTS
    if sigmas != count:
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS: {sigmas} values, but {json_file} has {count} keypoints:"
            " give one for each, its annotators' spread as a share of the object's size; COCO's are"
            " 0.026 (eyes) to 0.107 (hips)"
        )
