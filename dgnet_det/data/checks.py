"""Checks of the user's data: before anything is built, and of each image as it is read."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from .catalog import TREE_CROWNS
from .images import read_image

# Where each meta-architecture keeps its number of classes. Others' is not checked.
NUM_CLASSES_KEYS = {
    "GeneralizedRCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
}
# Enough to tell a wrong folder at once. A single missing image is named by the mapper on reading.
NUM_FILES_LOOKED_FOR = 8


def check_datasets(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check that datasets can be trained or evaluated on with ``cfg``.

    Every name must be registered. Of a dataset in COCO format, its JSON and its folder must exist,
    its images and annotations be consistent, and its number of classes be the model's; the first
    few images must exist. Datasets of other formats are left to Detectron2.

    Args:
        cfg: the config.
        names: out of ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Raises:
        UserError: the first thing that is wrong.
    """
    for name in dict.fromkeys(names):
        key = "DATASETS.TRAIN" if name in cfg.DATASETS.TRAIN else "DATASETS.TEST"
        if name not in DatasetCatalog.list():
            raise UserError(
                f"{key}: no dataset {name!r} is registered: correct the name, or register your own"
                " with detectron2.data.datasets.register_coco_instances"
            )
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") != "coco":
            continue
        json_file, image_root = metadata.json_file, metadata.image_root
        mend = (
            "run `python tools/prepare_tree_crowns.py`"
            if name.startswith(f"{TREE_CROWNS}_")
            else "set $DETECTRON2_DATASETS to the folder that holds your datasets (else: datasets)"
        )
        if not PathManager.isfile(json_file):
            raise UserError(f"{json_file}: no such annotation file of {name} ({key}): {mend}")
        if not PathManager.isdir(image_root):
            raise UserError(f"{image_root}: no such image folder of {name} ({key}): {mend}")
        coco = _read_json(json_file)
        sizes = _check_images(json_file, coco, image_root, name, mend)
        _check_annotations(
            json_file,
            coco,
            sizes,
            trained=name in cfg.DATASETS.TRAIN,
            evaluated=name in cfg.DATASETS.TEST,
        )
        _check_num_classes(cfg, name, coco)


class CheckedDatasetMapper(DatasetMapper):
    """Detectron2's mapper, for training and testing, with a :class:`UserError` that names the file
    where an image is missing, does not decode or is not of the size that its annotation states."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """As :meth:`DatasetMapper.__call__`."""
        path = dataset_dict["file_name"]
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not of the size in its annotation: {reason}") from error
        except Exception:
            read_image(path, self.image_format)  # tells whether it is the image's fault
            raise


def _read_json(path: str) -> dict[str, Any]:
    try:
        with PathManager.open(path) as file:
            coco = json.load(file)
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(coco, dict):
        raise UserError(f"{path}: not in COCO format: the top level is no object")
    for key in ("images", "categories"):
        if not isinstance(coco.get(key), list) or not coco[key]:
            raise UserError(f"{path}: not in COCO format: no list {key!r}, or an empty one")
    return coco


def _check_images(
    json_file: str, coco: dict[str, Any], image_root: str, name: str, mend: str
) -> dict[Any, tuple[float, float]]:
    """The sizes (width, height) of the images by id."""
    try:
        sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
        files = [image["file_name"] for image in coco["images"][:NUM_FILES_LOOKED_FOR]]
    except KeyError as error:
        raise UserError(f"{json_file}: an image has no {error.args[0]!r}") from error
    if len(sizes) < len(coco["images"]):
        raise UserError(f"{json_file}: two images share one id")
    for file in files:
        path = os.path.join(image_root, file)
        if not PathManager.isfile(path):
            raise UserError(f"{path}: no such image of {name}, listed in {json_file}: {mend}")
    return sizes


def _check_annotations(
    json_file: str,
    coco: dict[str, Any],
    sizes: dict[Any, tuple[float, float]],
    *,
    trained: bool,
    evaluated: bool,
) -> None:
    """Check ids and boxes. A box without an area is let pass: COCO has some."""
    annotations = coco.get("annotations")
    if trained and not annotations:
        raise UserError(f"{json_file}: no annotations to train on")
    # Evaluation reads the areas, and would miss them only after training.
    required = {"id", "image_id", "category_id", "bbox"} | ({"area"} if evaluated else set())
    categories = {category.get("id") for category in coco["categories"]}
    ids = set()
    for annotation in annotations or ():
        problem = _problem(annotation, required, categories, sizes)
        if problem is not None:
            raise UserError(f"{json_file}: annotation {annotation.get('id')}: {problem}")
        ids.add(annotation["id"])
    # Detectron2 refuses these too, but for the old COCO minival, which is known to have some.
    if len(ids) < len(annotations or ()) and "minival" not in json_file:
        raise UserError(f"{json_file}: two annotations share one id")


def _problem(
    annotation: dict[str, Any],
    required: set[str],
    categories: set[Any],
    sizes: dict[Any, tuple[float, float]],
) -> str | None:
    """What is wrong with an annotation."""
    if not required <= annotation.keys():
        return f"no {sorted(required - annotation.keys())[0]!r}"
    size = sizes.get(annotation["image_id"])
    if size is None:
        return f"image_id {annotation['image_id']!r} is not in 'images'"
    if annotation["category_id"] not in categories:
        return f"category_id {annotation['category_id']!r} is not in 'categories'"
    if not _is_box_in(annotation["bbox"], *size):
        return (
            f"bbox {annotation['bbox']} is no [x, y, width, height] in pixels that meets its image"
            f" of {size[0]} × {size[1]}"
        )
    return None


def _is_box_in(box: Any, width: float, height: float) -> bool:
    """Whether ``box`` is four finite numbers x, y, w ≥ 0 and h ≥ 0 and touches the image."""
    try:
        x, y, w, h = box
        return (
            math.isfinite(x + y + w + h)
            and w >= 0
            and h >= 0
            and x + w >= 0
            and y + h >= 0
            and x <= width
            and y <= height
        )
    except (TypeError, ValueError):
        return False


def _check_num_classes(cfg: CfgNode, name: str, coco: dict[str, Any]) -> None:
    group = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    count = len(coco["categories"])
    if group is not None and count != cfg.MODEL[group].NUM_CLASSES:
        raise UserError(
            f"MODEL.{group}.NUM_CLASSES {cfg.MODEL[group].NUM_CLASSES}: {name} has {count}"
            " categories: set the key to that number"
        )
