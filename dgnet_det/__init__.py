"""Dynamic Graph Networks (DG-Net, arXiv 2010.01097), and networks in the style of Dynamic Routing
Networks (arXiv 1905.04849), as Detectron2 backbones.

Importing the package registers them.
"""

import sysconfig
from importlib.util import find_spec

if find_spec("detectron2") is None:
    raise ImportError(
        "dgnet_det needs Detectron2 >= 0.6: in a checkout `make install`; for a GPU, or with a C++"
        " compiler, `pip install --no-build-isolation"
        " git+https://github.com/facebookresearch/detectron2`; for a CPU on Linux `pip install"
        " opencv-python-headless` and `pip install --no-deps --only-binary=:all: --python-version"
        f" 3.10 --target {sysconfig.get_path('purelib')} sal-detectron2==0.7.2`",
        name="detectron2",
    )

from dgnet_det.config import add_dgnet_config, get_cfg
from dgnet_det.errors import UserError
from dgnet_det.modeling.backbone.dgnet import (
    DGNet,
    build_dgnet_backbone,
    build_dgnet_fpn_backbone,
    build_dgnet_retinanet_fpn_backbone,
    make_dgnet,
)
from dgnet_det.modeling.backbone.drnet import (
    DRNet,
    build_drnet_backbone,
    build_drnet_fpn_backbone,
    build_drnet_retinanet_fpn_backbone,
    make_drnet,
)

__version__ = "0.1.0"

__all__ = [
    "DGNet",
    "DRNet",
    "UserError",
    "add_dgnet_config",
    "build_dgnet_backbone",
    "build_dgnet_fpn_backbone",
    "build_dgnet_retinanet_fpn_backbone",
    "build_drnet_backbone",
    "build_drnet_fpn_backbone",
    "build_drnet_retinanet_fpn_backbone",
    "get_cfg",
    "make_dgnet",
    "make_drnet",
]
