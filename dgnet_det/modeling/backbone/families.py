"""The families of blocks. One more is one more file, listed here."""

from dgnet_det.errors import check_choice
from dgnet_det.modeling.backbone.cell import CELL_NETWORK
from dgnet_det.modeling.backbone.mobilenetv2 import MOBILENETV2
from dgnet_det.modeling.backbone.naming import Family
from dgnet_det.modeling.backbone.regnet import REGNET
from dgnet_det.modeling.backbone.resnet import RESNET

FAMILIES = {family.name: family for family in (RESNET, MOBILENETV2, REGNET, CELL_NETWORK)}


def family_of(name: str) -> Family:
    """The family of ``MODEL.DGNET.FAMILY``.

    Raises:
        UserError: there is none of this name.
    """
    check_choice("MODEL.DGNET.FAMILY", name, FAMILIES)
    return FAMILIES[name]
