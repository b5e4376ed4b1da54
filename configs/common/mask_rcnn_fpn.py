"""Detectron2's Mask R-CNN with FPN on a DG-Net, for RGB images."""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from dgnet_det.modeling.backbone import make_dgnet

model = get_config("common/models/mask_rcnn_fpn.py").model
# The leaves add the network: depth=50, or another family's arguments.
model.backbone.bottom_up = L(make_dgnet)(
    family="resnet",
    wiring="residual",
    edge_weights="dynamic",
    graph_stages=["res3", "res4", "res5"],  # res2 is frozen
    norm="FrozenBN",
    out_features=["res2", "res3", "res4", "res5"],
    freeze_at=2,
)
constants = get_config("common/data/constants.py").constants
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = "RGB"
