"""This project's configs by name, as in Detectron2's ``model_zoo``. There are no weights."""

import difflib
from pathlib import Path

from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig

from dgnet_det.config import read_yaml
from dgnet_det.errors import UserError

PACKAGE = Path(__file__).parent
# A wheel carries them in the package; in the repository they are beside it.
CONFIGS = next(f for f in (PACKAGE / "configs", PACKAGE.parent / "configs") if f.is_dir())


def get_config_file(config_path: str) -> str:
    """The path of a config in ``configs/``, such as
    ``COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml``.

    Raises:
        UserError: there is no such config.
    """
    path = CONFIGS / config_path
    if not path.is_file():
        there = [file.relative_to(CONFIGS).as_posix() for file in CONFIGS.glob("*/*.*")]
        nearest = difflib.get_close_matches(config_path, there, n=1, cutoff=0.0)
        raise UserError(f"{config_path}: there is no such config; the nearest is {nearest[0]}")
    return str(path)


def get_config(config_path: str) -> CfgNode | DictConfig:
    """One of this project's configs: of a YAML file a ``CfgNode``, not frozen, of a Python file a
    LazyConfig.

    Raises:
        UserError: as :func:`get_config_file`.
    """
    path = get_config_file(config_path)
    return LazyConfig.load(path) if path.endswith(".py") else read_yaml(path)
