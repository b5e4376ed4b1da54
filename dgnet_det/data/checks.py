"""Checks of the user's data: before anything is built, and of each image as it is read."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils.file_io import PathManager

from dgnet_det.config import NUM_CLASSES_KEYS
from dgnet_det.data.coco import forget_files
from dgnet_det.data.coco_checks import Content, check_coco, compare_categories
from dgnet_det.data.findings import Findings
from dgnet_det.data.image_checks import LEARNED_BY_HEART, check_presence
from dgnet_det.data.images import check_header, read_image
from dgnet_det.errors import UserError


def check_datasets(cfg: CfgNode, names: Sequence[str]) -> None:
    """The quick part of ``tools/check_dataset.py``, in which no image is read, for the datasets of
    a config.

    Every name must be registered. Of a dataset in COCO format, its JSON, its folder and its images
    must exist, its content must be sound, and its number of classes the model's. What is checked
    without being an error is logged as a warning, and so are images that are in two splits.
    Datasets of other formats are left to Detectron2.

    Args:
        cfg: the config.
        names: out of ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Raises:
        UserError: the first thing that is wrong.
    """
    findings = Findings()
    checked: dict[str, Content] = {}
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
        trained, evaluated = name in cfg.DATASETS.TRAIN, name in cfg.DATASETS.TEST
        of_file = findings.of_file(json_file)
        content = check_coco(cfg, of_file, trained=trained, evaluated=evaluated)
        check_presence(content.images.values(), image_root, of_file, mend)
        findings.raise_first_error()
        checked[name] = content
    for train in cfg.DATASETS.TRAIN:
        for test in cfg.DATASETS.TEST:
            if train != test and train in checked and test in checked:
                _check_pair(train, checked[train], test, checked[test], findings)
    group = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    for name, content in checked.items():
        if group is not None and len(content.names) != cfg.MODEL[group].NUM_CLASSES:
            raise UserError(
                f"MODEL.{group}.NUM_CLASSES {cfg.MODEL[group].NUM_CLASSES}: {name} has"
                f" {len(content.names)} categories: set the key to that number"
            )
    forget_files()
    for finding in findings.of("warning"):
        logging.getLogger(__name__).warning(finding.line())


class CheckedDatasetMapper(DatasetMapper):
    """Detectron2's mapper, for training and testing, with a :class:`UserError` that names the file
    where :func:`read_image` would raise it, or an image is not of the size that its annotation
    states."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """As :meth:`DatasetMapper.__call__`."""
        path = dataset_dict["file_name"]
        check_header(path)
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not of the size in its annotation: {reason}") from error
        except Exception:
            read_image(path, self.image_format)  # tells whether it is the image's fault
            raise


def _check_pair(train: str, ours: Content, test: str, theirs: Content, findings: Findings) -> None:
    """Check a test set against a training set. A run may be meant to learn its test images, to see
    whether it learns at all."""
    a, b = MetadataCatalog.get(train), MetadataCatalog.get(test)
    of_file = findings.of_file(b.json_file)
    compare_categories(a.json_file, ours, theirs, of_file)
    findings.raise_first_error()
    trained, tested = (
        {os.path.abspath(os.path.join(root, i["file_name"])) for i in content.images.values()}
        for root, content in ((a.image_root, ours), (b.image_root, theirs))
    )
    for path in sorted(trained & tested):
        problem = f"{path} is in the training set too: {LEARNED_BY_HEART}"
        of_file.warning("shared-image", problem, path)
