"""Checks of the user's data: before anything is built, and of each image as it is read."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils.file_io import PathManager

from dgnet_det.data.coco_checks import category_names, check_coco, compare_categories, read_coco
from dgnet_det.data.findings import Findings
from dgnet_det.data.image_checks import check_presence, compare_image_paths
from dgnet_det.data.images import read_image
from dgnet_det.data.tasks import check_tasks
from dgnet_det.errors import UserError

# Where each meta-architecture keeps its number of classes. Others' is not checked.
NUM_CLASSES_KEYS = {
    "GeneralizedRCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
}
# Enough to tell a wrong folder at once. A single missing image is named by the mapper on reading.
NUM_FILES_LOOKED_FOR = 8


def check_datasets(cfg: CfgNode, names: Sequence[str]) -> None:
    """The quick part of ``tools/check_dataset.py``, in which no image is read, for the datasets of
    a config.

    Every name must be registered. Of a dataset in COCO format, its JSON and its folder must exist,
    its content must be sound, its number of classes the model's and the first few images there.
    What is checked without being an error is logged as a warning, and so are images that are in two
    splits. Datasets of other formats are left to Detectron2.

    Args:
        cfg: the config.
        names: out of ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Raises:
        UserError: the first thing that is wrong.
    """
    findings = Findings()
    checked: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(names):
        key = "DATASETS.TRAIN" if name in cfg.DATASETS.TRAIN else "DATASETS.TEST"
        if name not in DatasetCatalog.list():
            raise UserError(
                f"{key}: no dataset {name!r} is registered: correct the name, or name your files in"
                " DATASETS.TRAIN_JSON, TRAIN_IMAGES, VAL_JSON and VAL_IMAGES"
            )
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") != "coco":
            continue
        json_file, image_root = metadata.json_file, metadata.image_root
        mend = "set $DETECTRON2_DATASETS to the folder that holds your datasets (else: datasets)"
        if name == json_file:  # named by its file in the config
            mend = "correct DATASETS.TRAIN_JSON, TRAIN_IMAGES, VAL_JSON or VAL_IMAGES"
        if not PathManager.isfile(json_file):
            raise UserError(f"{json_file}: no such annotation file of {name} ({key}): {mend}")
        if not PathManager.isdir(image_root):
            raise UserError(f"{image_root}: no such image folder of {name} ({key}): {mend}")
        coco = read_coco(json_file)
        trained, evaluated = name in cfg.DATASETS.TRAIN, name in cfg.DATASETS.TEST
        images, _ = check_coco(json_file, coco, findings, trained=trained, evaluated=evaluated)
        looked_for = list(images.values())[:NUM_FILES_LOOKED_FOR]
        check_presence(json_file, looked_for, image_root, findings, mend)
        findings.raise_first_error()
        _check_num_classes(cfg, name, coco)
        check_tasks(cfg, json_file, coco)
        checked[name] = coco
    _check_pairs(cfg, checked, findings)
    for finding in findings.of("warning"):
        logging.getLogger(__name__).warning(finding.line())


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


def _check_pairs(cfg: CfgNode, checked: dict[str, dict[str, Any]], findings: Findings) -> None:
    """Check each test set against the training sets."""
    for train in cfg.DATASETS.TRAIN:
        for test in cfg.DATASETS.TEST:
            if train == test or train not in checked or test not in checked:
                continue
            a, b = MetadataCatalog.get(train), MetadataCatalog.get(test)
            compare_categories(
                a.json_file,
                category_names(checked[train]),
                b.json_file,
                category_names(checked[test]),
                findings,
            )
            findings.raise_first_error()
            # A run may be meant to learn its test images, to see whether it learns at all.
            shared = Findings()
            compare_image_paths(
                a.image_root,
                checked[train]["images"],
                b.json_file,
                b.image_root,
                checked[test]["images"],
                shared,
            )
            for finding in shared.of("error"):
                logging.getLogger(__name__).warning(finding.line())


def _check_num_classes(cfg: CfgNode, name: str, coco: dict[str, Any]) -> None:
    group = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    count = len(coco["categories"])
    if group is not None and count != cfg.MODEL[group].NUM_CLASSES:
        raise UserError(
            f"MODEL.{group}.NUM_CLASSES {cfg.MODEL[group].NUM_CLASSES}: {name} has {count}"
            " categories: set the key to that number"
        )
