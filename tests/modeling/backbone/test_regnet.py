"""RegNet backbones against Detectron2's own RegNet, timm's tables and the paper's Table 1."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from helpers.static_networks import assert_equal_features, randomised
from timm.models.regnet import model_cfgs
from torch import nn
from torchvision.models.regnet import BlockParams

from dgnet_det import DGNet, UserError, build_dgnet_backbone, get_cfg
from dgnet_det.modeling.backbone.regnet import REGNETS


def make_cfg(name: str, wiring: str = "paper", edge_weights: str = "dynamic") -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DGNET.FAMILY = "regnet"
    cfg.MODEL.DGNET.REGNET = name
    cfg.MODEL.DGNET.WIRING = wiring
    cfg.MODEL.DGNET.EDGE_WEIGHTS = edge_weights
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    return cfg


def build(name: str, wiring: str = "paper", edge_weights: str = "dynamic") -> DGNet:
    return build_dgnet_backbone(make_cfg(name, wiring, edge_weights), ShapeSpec(channels=3))


def detectron2_regnet(name: str) -> RegNet:
    p = REGNETS[name]
    return RegNet(
        stem_class=SimpleStem,
        stem_width=32,
        block_class=ResBottleneckBlock,
        depth=p.depth,
        w_a=p.w_a,
        w_0=p.w_0,
        w_m=p.w_m,
        group_width=p.group_width,
        se_ratio=p.se_ratio,
        norm="BN",
        out_features=["s1", "s2", "s3", "s4"],
    )


@pytest.mark.parametrize("name", ["X_400M", "Y_400M"])
@pytest.mark.parametrize("edge_weights", ["none", "dynamic"])
def test_residual_wiring_starts_as_detectron2s_regnet(name: str, edge_weights: str) -> None:
    theirs, ours = detectron2_regnet(name).eval(), build(name, "residual", edge_weights).eval()
    ours.load_state_dict(randomised(theirs).state_dict())
    images = torch.randn(2, 3, 64, 96)
    expected = {f"res{int(name[1]) + 1}": x for name, x in theirs(images).items()}
    assert_equal_features(ours(images), expected)
    assert ours.output_shape() == {
        f"res{i + 1}": theirs.output_shape()[f"s{i}"] for i in range(1, 5)
    }


PUBLISHED = [name for name in REGNETS if not name.endswith("_TV")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_timm(name: str) -> None:
    gigaflops = {"400M": "004", "600M": "006", "800M": "008", "1600M": "016", "3200M": "032"}
    theirs = model_cfgs[f"regnet{name[0].lower()}_{gigaflops[name[2:]]}"]
    assert REGNETS[name] == (
        theirs.depth,
        theirs.wa,
        theirs.w0,
        theirs.wm,
        theirs.group_size,
        theirs.se_ratio,
        False,
    )
    assert theirs.stem_width == 32


@pytest.mark.parametrize("name", list(REGNETS))
def test_widths_are_torchvisions(name: str) -> None:
    """But for two networks, of which torchvision builds wider ones."""
    p = REGNETS[name]
    theirs = BlockParams.from_init_params(p.depth, p.w_0, p.w_a, p.w_m, p.group_width)
    with torch.device("meta"):
        ours = build(name, "residual", "none")
    widths = [shape.channels for shape in ours.output_shape().values()]
    assert (widths == theirs.widths) == (name not in ("X_400M", "Y_800M"))


@pytest.mark.parametrize(
    ("name", "edges"), [("X_600M", [3, 10, 21, 36]), ("X_1600M", [6, 15, 66, 6])]
)
def test_edges_per_stage(name: str, edges: list[int]) -> None:
    graphs = build(name).stages().values()
    assert [sum(r.linear.out_features for r in graph.routers.values()) for graph in graphs] == edges


@pytest.mark.parametrize("name", ["X_400M", "Y_400M"])
def test_paper_wiring_trains(name: str) -> None:
    backbone = build(name)
    for parameter in backbone.parameters():
        if parameter.abs().max() == 0:  # routers start at 0, where W's input has no gradient
            nn.init.normal_(parameter, std=0.01)
    features = backbone(torch.randn(2, 3, 64, 64))
    (features["res5"] ** 2).mean().backward()
    unused = [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias of a convolution before a squeezed sigmoid and the like all have gradients.
    assert unused == []
    assert not any(".proj." in key for key, _ in backbone.named_parameters())


def test_unknown_regnet_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"MODEL\.DGNET\.REGNET 'X_7M': choose from X_400M"):
        build("X_7M")
