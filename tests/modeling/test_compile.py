"""MODEL.COMPILE: what a compiled backbone computes, and where it is refused."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from helpers.configs import ROOT
from helpers.detectors import route_at_random
from helpers.narrow import NARROW
from helpers.static_networks import randomised
from torch import Tensor, nn
from torch._dynamo.utils import counters

from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.modeling.budget import BudgetLoss
from dgnet_det.modeling.build import build_model, compile_backbone
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import dgnet_of, record_decisions

CONFIG = ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_18_residual_FPN_1x.yaml"
COMPILED = ["MODEL.COMPILE", "True"]


def cfg(*opts: str, config: str = str(CONFIG)) -> Any:
    # One graph of two blocks, behind a frozen stage.
    return load_cfg(config, [*NARROW, "MODEL.DGNET.STAGES", "['res5']", *COMPILED, *opts])


def step(detector: nn.Module, loss: BudgetLoss, images: Tensor) -> list[Tensor]:
    """Features, gradients and running statistics of one step of FPN and backbone."""
    detector.zero_grad()
    features = list(detector.backbone(images).values())
    (sum(y.square().mean() for y in features) + loss()).backward()
    learned = [p.grad for p in detector.backbone.parameters() if p.requires_grad]
    return [*features, *learned, *detector.backbone.buffers()]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        atol = 1e-9 * theirs.double().abs().max().item() + 1e-12
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=atol)


def test_a_compiled_backbone_trains_and_evaluates_as_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On images of several sizes and numbers, with padding, closed edges, the budget's loss and a
    listener to the edge weights; in one program, and not compiled anew for every size."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    ours = randomised(build_model(cfg()).double()).train()
    route_at_random(ours)
    compiled = copy.deepcopy(ours)
    compile_backbone(cfg(), compiled)
    assert compiled.state_dict().keys() == ours.state_dict().keys()
    counters.clear()
    losses = [BudgetLoss(dgnet_of(net), weight=1.0, budget=0.1) for net in (ours, compiled)]
    with record_decisions(ours) as expected, record_decisions(compiled) as actual:
        for batch, height, width in ((2, 64, 96), (3, 96, 64), (4, 128, 96)):
            images = torch.randn(batch, 3, height, width).double()
            images[0, :, height // 2 :] = 0
            assert_close(step(compiled, losses[1], images), step(ours, losses[0], images))
            values = [seen["res5.0"].value for seen in (actual, expected)]
            assert_close(values[:1], values[1:])
            assert values[0].eq(0)[:, 3, :1].any()  # closed for some
        optimize_for_inference(ours)
        optimize_for_inference(compiled)
        images = torch.randn(1, 3, 64, 96).double()
        with torch.no_grad():
            features = (list(net.backbone(images).values()) for net in (compiled, ours))
            assert_close(*features)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 3


@pytest.mark.parametrize(
    ("config", "opts"),
    [
        ("faster_rcnn_DG_R_18_FPN_1x", []),
        ("faster_rcnn_DR_R_50_FPN_1x", []),
        ("faster_rcnn_DG_R_18_residual_FPN_1x", ["MODEL.RESNETS.NORM", "SyncBN"]),
    ],
)
def test_where_it_does_not_hold_it_is_refused(config: str, opts: list[str]) -> None:
    with pytest.raises(UserError, match=r"MODEL.COMPILE: .*: set it to False"):
        load_cfg(str(CONFIG.with_name(f"{config}.yaml")), [*COMPILED, *opts])


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = cfg()
    with pytest.raises(UserError, match="there is no C\\+\\+ compiler no-such-compiler"):
        compile_backbone(config, nn.Identity())
