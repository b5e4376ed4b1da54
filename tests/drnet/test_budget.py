"""The budget of routed stages: costs against counts by hand, the loss, its growth, and the
schedule."""

import math

import pytest
import torch
from detectron2.engine import SimpleTrainer
from helpers.configs import ROOT
from helpers.detectors import SMALL
from helpers.routed import images, routed_backbone
from torch import nn

from dgnet_det.analysis.counts import backbone_counts
from dgnet_det.config import load_cfg
from dgnet_det.engine.detection import build_detector
from dgnet_det.engine.hooks import RoutingSchedule
from dgnet_det.engine.optimizer import build_optimizer
from dgnet_det.errors import UserError
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.budget import BudgetLoss, budget_loss
from dgnet_det.modeling.costs import SIDE, Costs
from dgnet_det.modeling.observation import record_decisions, record_spread, routed_stages

CONFIG = str(ROOT / "configs/COCO-Detection/faster_rcnn_DR_MobileNetV2_FPN_1x.yaml")


def choose(backbone: DGNet, *preferences: float) -> None:
    """Have every connection choose alike for all images, with these logits."""
    for stage in routed_stages(backbone).values():
        for router in stage.routers.values():
            nn.init.zeros_(router.linear.weight)
            router.linear.bias.data = torch.tensor(preferences).repeat(router.shape[0])


def block(channels: int, side: int) -> int:
    """Multiply-adds of an inverted residual that keeps the shape, expanding six times."""
    return (2 * channels + 9) * 6 * channels * side**2


def test_costs_by_hand() -> None:
    backbone = routed_backbone("mobilenetv2", norm="BN")
    costs = Costs.of(backbone.train())
    expected = {
        "res2.1": [block(24, 64)], "res3.0": [block(32, 32)] * 2, "res4.0": [block(64, 16)] * 3,
        "res4.1": [block(96, 16)] * 2, "res5.0": [block(160, 8)] * 2,
    }  # fmt: skip
    assert {n: cost[:, 0].tolist() for n, cost in costs.decided.items()} == expected
    assert not any(cost[:, 1].any() for cost in costs.decided.values())
    assert costs.whole == backbone_counts(backbone.eval(), (SIDE, SIDE)).macs
    assert costs.cheapest == costs.fixed == costs.whole - sum(map(sum, expected.values()))


def test_costs_of_cells_by_hand() -> None:
    costs = Costs.of(routed_backbone("cell"))
    pixels, channels = 32**2, 64
    row = [(k * k + channels) * channels * pixels for k in (3, 5, 3)]
    assert costs.decided["res3.0"].tolist() == [[*row, 0, 0]] * 3
    only = routed_backbone("cell", branches=["sep5x5"])
    routers = costs.whole - backbone_counts(only, (SIDE, SIDE)).macs
    assert 0 < routers < 0.02 * costs.whole


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_share_loss_and_its_growth(weight: float) -> None:
    """Every block is weighed alike. At last what runs at all is paid for whole."""
    hot = 1e6  # a temperature at which noise is nothing
    backbone = routed_backbone("mobilenetv2", soft_phase=0.8, temperature=(hot, hot)).train()
    costs, loss = Costs.of(backbone), BudgetLoss(backbone, weight=2.0, budget=0.6)
    choose(backbone, (weight - 0.5) * 100 * hot, 0.0)
    least = costs.cheapest / costs.whole
    for progress, part in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)):
        for stage in routed_stages(backbone).values():
            stage.progress = progress
        backbone(images(2))
        paid = weight if progress < 0.8 else math.ceil(weight)
        share = least + paid * (1 - least)
        assert loss().item() == pytest.approx(2 * part * abs(share - 0.6), abs=1e-4)


def test_the_budget_moves_routers_alone() -> None:
    backbone = routed_backbone("mobilenetv2").train()
    loss = BudgetLoss(backbone, weight=1.0, budget=0.0)
    for stage in routed_stages(backbone).values():
        stage.progress = 0.3
    backbone(images(4))
    loss().backward()
    moved = {name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(".routers." in name for name in moved)
    # The routers also see features, through which what comes before them has a gradient.
    assert not any(name.startswith("res5.0.nodes.3") for name in moved)


def test_figures_of_choices() -> None:
    backbone = routed_backbone("mobilenetv2")
    x = images(8)
    with record_spread(backbone) as spread, record_decisions(backbone) as choices:
        for image in x.split(4):
            backbone(image)
        figures = spread.pop()
        backbone(x)
    costs = Costs.of(backbone)
    shares = costs.share({name: one.gate for name, one in choices.items()})
    assert figures["share"] == pytest.approx(shares.mean().item(), rel=1e-5)
    assert figures["share_std"] == pytest.approx(shares.std(correction=0).item(), rel=1e-3)

    def bits(*weights: float) -> float:
        return -sum(w * math.log2(w) for w in weights if w)

    told = []
    for one in choices.values():
        for images_of_one in one.weight.double().unbind(1):
            told.append(bits(*images_of_one.mean(dim=0).tolist()))
            told[-1] -= sum(bits(*row) for row in images_of_one.tolist()) / len(x)
    assert sum(told) > 0.1
    assert figures["entropy"] == pytest.approx(sum(told) / len(told), abs=1e-5)


def detector_cfg(*opts: str):  # type: ignore[no-untyped-def]
    return load_cfg(CONFIG, [*SMALL, *opts])


def test_routers_have_a_learning_rate_of_their_own_and_no_decay() -> None:
    cfg = detector_cfg("SOLVER.ROUTER_LR_FACTOR", "0.5")
    model = build_detector(cfg)
    routers = {p for n, p in model.named_parameters() if ".routers." in n}
    for group in build_optimizer(cfg, model).param_groups:
        inside = [p in routers for p in group["params"]]
        assert all(inside) or not any(inside)
        if inside[0]:
            assert (group["lr"], group["weight_decay"]) == (0.5 * cfg.SOLVER.BASE_LR, 0.0)


def test_the_temperature_follows_from_the_iteration() -> None:
    backbone = routed_backbone("mobilenetv2", temperature=(1.0, 0.01))
    trainer = SimpleTrainer(backbone, [], None)
    hook = RoutingSchedule()
    trainer.register_hooks([hook])
    hook.before_train()
    trainer.max_iter = 10
    for iteration in (0, 5, 9):
        trainer.iter = iteration
        hook.before_step()
        assert {stage.progress for stage in routed_stages(backbone).values()} == {iteration / 10}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.DRNET.BUDGET", "0.3"), r"BUDGET 0.3: what runs in any case has a share of 0.4"),
        (("MODEL.DRNET.BUDGET_WEIGHT", "-1.0"), "MODEL.DRNET.BUDGET_WEIGHT -1.0"),
        (("MODEL.DRNET.BRANCHES", "['block']"), "there are no branches to choose from"),
    ],
)
def test_errors(opts: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_detector(detector_cfg(*opts))


def test_no_loss_without_a_weight() -> None:
    cfg = detector_cfg("MODEL.DRNET.BUDGET_WEIGHT", "0.0")
    assert budget_loss(cfg, build_detector(cfg)) is None
