"""The families of blocks. One more is one more file, listed here."""

from dgnet_det.modeling.backbone.mobilenetv2 import MOBILENETV2
from dgnet_det.modeling.backbone.regnet import REGNET
from dgnet_det.modeling.backbone.resnet import RESNET

FAMILIES = {family.name: family for family in (RESNET, MOBILENETV2, REGNET)}
