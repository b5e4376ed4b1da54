"""RegNet backbones against Detectron2's own RegNet, timm's tables and the paper's Table 1."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from timm.models.regnet import model_cfgs
from torch import nn

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


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Detectron2's ``s1.b1.…`` as ``res2.0.nodes.1.…``: nothing else differs."""
    names = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if first[0] == "s" and first[1:].isdigit():
            block, _, inner = rest.partition(".")
            key = f"res{int(first[1:]) + 1}.0.nodes.{block[1:]}.{inner}"
        names[key] = value
    return names


def randomize_norms(model: nn.Module) -> None:
    """Statistics and affine parameters that a trained network could have."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)


@pytest.mark.parametrize("name", ["X_400M", "Y_400M"])
@pytest.mark.parametrize("edge_weights", ["none", "dynamic"])
def test_residual_wiring_starts_as_detectron2s_regnet(name: str, edge_weights: str) -> None:
    theirs, ours = detectron2_regnet(name).eval(), build(name, "residual", edge_weights).eval()
    randomize_norms(theirs)
    missing, unexpected = ours.load_state_dict(renamed(theirs.state_dict()), strict=False)
    assert unexpected == []
    routing = ("routers.", "thresholds", "gammas.")
    assert all(any(part in key for part in routing) for key in missing)
    assert (missing == []) == (edge_weights == "none")
    images = torch.randn(2, 3, 64, 96)
    expected, actual = theirs(images), ours(images)
    assert list(actual) == ["res2", "res3", "res4", "res5"]
    for i, feature in enumerate(actual.values(), start=1):
        torch.testing.assert_close(feature, expected[f"s{i}"], rtol=1e-4, atol=1e-5)
    assert ours.output_shape() == {
        f"res{i + 1}": theirs.output_shape()[f"s{i}"] for i in range(1, 5)
    }


@pytest.mark.parametrize("name", list(REGNETS))
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
    )
    assert theirs.stem_width == 32


@pytest.mark.parametrize(
    ("name", "edges"), [("X_600M", [3, 10, 21, 36]), ("X_1600M", [6, 15, 66, 6])]
)
def test_edges_per_stage(name: str, edges: list[int]) -> None:
    backbone = build(name)
    counts = [
        sum(router.linear.out_features for router in graph.routers.values())
        for stage in backbone.stage_names
        for graph in backbone.graphs(stage)
    ]
    assert counts == edges


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
