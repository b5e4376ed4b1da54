"""The budget loss: costs against counts by hand and against operators, and how it is trained."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from helpers.configs import ROOT
from helpers.detectors import SMALL, config
from helpers.narrow import close_edges, narrow_r18
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dgnet_det.analysis.counts import backbone_counts
from dgnet_det.config import load_cfg
from dgnet_det.engine.detection import build_detector
from dgnet_det.errors import UserError
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.budget import BudgetLoss, budget_loss
from dgnet_det.modeling.classifier import build_classifier
from dgnet_det.modeling.costs import SIDE, Costs
from dgnet_det.modeling.observation import dgnet_of, dynamic_graphs, record_decisions

PAPER = ("MODEL.DGNET.WIRING", "paper")
RESIDUAL = ("MODEL.DGNET.WIRING", "residual")
WIRINGS = pytest.mark.parametrize("wiring", [PAPER, RESIDUAL], ids=["paper", "residual"])


def small_backbone(*opts: str) -> DGNet:
    """A ResNet-18 of 8, 16, 32 and 64 channels with batch norm, untrained: every τ is 0."""
    return dgnet_of(narrow_r18(*opts))


def run(backbone: DGNet, side: int = 64) -> None:
    backbone.train()(torch.randn(2, 3, side, side))


def shares_of(backbone: DGNet) -> dict[str, torch.Tensor]:
    """Each edge's share of all edges' costs, by graph."""
    costs = Costs.of(backbone).decided
    total = sum(float(cost.sum()) for cost in costs.values())
    return {name: cost / total for name, cost in costs.items()}


def test_costs_by_hand() -> None:
    """res3 at 256 x 256 pixels: 8 channels of 64 x 64 in, 16 channels of 32 x 32 out."""
    pixels = 32**2
    nodes = {
        # Two 3x3 convolutions, pooling, a router to two and to one later node.
        1: 9 * (8 * 16 + 16 * 16) * pixels + 16 * pixels + 2 * 16,
        2: 9 * (16 * 16 + 16 * 16) * pixels + 16 * pixels + 16,
    }
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[1, 0] = 8 * 64**2 + nodes[1]
    expected[2, :2] = 16 * pixels + nodes[2] / 2
    expected[3, :3] = 16 * pixels
    assert torch.equal(Costs.of(small_backbone(*PAPER)).decided["res3.0"], expected)

    # res3 of the residual wiring, whose blocks run in any case. Its stem pools: half the size in.
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[2, 0] = expected[3, 0] = expected[3, 1] = 16 * 32**2
    assert torch.equal(Costs.of(small_backbone(*RESIDUAL)).decided["res3.0"], expected)


def test_costs_and_what_runs_in_any_case_are_all_that_runs() -> None:
    backbone = small_backbone(*PAPER)
    fixed = 7 * 7 * 3 * 8 * 128**2  # the stem
    for channels, out_channels, side in ((8, 8, 64), (8, 16, 32), (16, 32, 16), (32, 64, 8)):
        projection = channels * out_channels * side**2
        fixed += projection + out_channels * side**2 + 3 * out_channels  # and node 0's router
    total = sum(float(cost.sum()) for cost in Costs.of(backbone).decided.values())
    assert total + fixed == backbone_counts(backbone.eval(), (SIDE, SIDE)).macs


@WIRINGS
def test_share_of_open_edges(wiring: tuple[str, str]) -> None:
    backbone = small_backbone(*wiring)
    shares = shares_of(backbone)
    loss = BudgetLoss(backbone, weight=3.0, budget=0.25)
    run(backbone)
    assert loss().item() == pytest.approx(3 * (1 - 0.25))
    close_edges(backbone, "res4.0", (0, 2))
    run(backbone)
    saved = float(shares["res4.0"][2, 0])
    assert loss().item() == pytest.approx(3 * (1 - saved - 0.25))


@WIRINGS
def test_gradients_are_those_of_the_surrogate(wiring: tuple[str, str]) -> None:
    backbone = small_backbone(*wiring)
    shares = shares_of(backbone)
    for graph in dynamic_graphs(backbone).values():
        for router in graph.routers.values():  # so that α has no influence on later nodes'
            nn.init.zeros_(router.linear.weight)
    loss = BudgetLoss(backbone, weight=2.0)
    with record_decisions(backbone) as latest:
        run(backbone)
    loss().backward()
    for name, graph in dynamic_graphs(backbone).items():
        for i, router in enumerate(graph.routers.values()):
            # The step's derivative is 1 in α, -1 in τ; dα/db = α(1 - α). The mean is the batch's.
            share = 2 * shares[name][i + graph.nearest :, i]
            alpha = latest[name].value[:, i + graph.nearest :, i].double()
            expected = share * (alpha * (1 - alpha)).mean(dim=0)
            linear = router.linear
            torch.testing.assert_close(linear.bias.grad.double(), expected, rtol=1e-4, atol=0)
            assert linear.weight.grad.any()
            tau = graph.thresholds.grad[i].item()
            assert tau == pytest.approx(-float(share.sum()), rel=1e-4)


def test_no_gradient_within_the_budget() -> None:
    backbone = small_backbone(*PAPER)
    loss = BudgetLoss(backbone, weight=2.0, budget=0.9)
    for name in ("res2.0", "res3.0", "res4.0", "res5.0"):
        close_edges(backbone, name, (0, 2))
    run(backbone)
    value = loss()
    value.backward()
    assert value == 0
    assert not any(p.grad.any() for p in backbone.parameters() if p.grad is not None)


@WIRINGS
def test_training_reaches_a_budget(wiring: tuple[str, str]) -> None:
    backbone = small_backbone(*wiring)
    share, loss = (BudgetLoss(backbone, weight=1.0, budget=budget) for budget in (0.0, 0.6))
    optimizer = torch.optim.SGD(backbone.parameters(), lr=2.0)
    for _ in range(40):
        optimizer.zero_grad()
        run(backbone, side=32)
        over, used = loss(), share()
        if over == 0:
            break
        over.backward()
        optimizer.step()
    assert 0 < used.item() <= 0.6


def detector(*opts: str) -> nn.Module:
    cfg = load_cfg(config("faster"), [*SMALL, *opts])
    return build_detector(cfg).train()


def losses(model: Callable, side: int = 96) -> dict[str, torch.Tensor]:
    instances = Instances((side, side))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 70.0]]))
    instances.gt_classes = torch.tensor([3])
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    with EventStorage():
        return model([{"image": image, "instances": instances}] * 2)


def test_off_by_default() -> None:
    model = detector()
    assert "loss_budget" not in losses(model)
    assert not model._forward_hooks
    assert not any(graph.decisions._forward_hooks for graph in dynamic_graphs(model).values())


ON = ("MODEL.DGNET.SPARSITY_WEIGHT", "2.0", "MODEL.DGNET.SPARSITY_BUDGET", "0.25")


@pytest.mark.parametrize("autocast", [False, True])
def test_detector_returns_the_loss_in_training_alone(autocast: bool) -> None:
    model = detector(*ON)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = losses(model)
    assert found["loss_budget"].item() == pytest.approx(2 * 0.75)
    assert found["loss_budget"].dtype == torch.float32
    sum(found.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("thresholds" in name or "routers" in name):
            assert parameter.grad.any(), name
    with torch.no_grad():
        found = model.eval()([{"image": torch.zeros(3, 96, 96)}])
    assert list(found[0]) == ["instances"]


@torch.no_grad()
def test_a_training_forward_pass_without_gradients_has_a_loss() -> None:
    """As fvcore's ``update_bn_stats`` makes them."""
    assert losses(detector(*ON))["loss_budget"].item() == pytest.approx(2 * 0.75)


def test_a_copy_made_after_a_training_step_has_its_own_loss() -> None:
    model = detector(*ON)
    sum(losses(model).values()).backward()
    dgnet_of(model)(torch.zeros(1, 3, 64, 64))  # a forward pass whose loss nobody asks for
    copied = copy.deepcopy(model)
    close_edges(copied, "res4.0", (0, 1), (0, 2), (0, 3))
    original, of_copy = losses(model)["loss_budget"], losses(copied)["loss_budget"]
    assert original.item() == pytest.approx(2 * 0.75)
    assert of_copy.item() < original.item()
    of_copy.backward()
    assert dynamic_graphs(copied)["res3.0"].thresholds.grad.any()


def test_in_distributed_data_parallel(tmp_path: Path) -> None:
    """Every parameter takes part, as DistributedDataParallel wants it, and its gradients are those
    without."""
    model = detector(*ON)
    alone = losses(model)["loss_budget"]
    alone.backward()
    thresholds = {
        name: p for name, p in model.named_parameters() if "thresholds" in name and p.requires_grad
    }
    expected = {name: p.grad.clone() for name, p in thresholds.items()}
    model.zero_grad()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # the second forward pass checks that all gradients of the first came
            model.zero_grad()
            found = losses(parallel)
            (found["loss_budget"] + 0 * sum(found.values())).backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, p in thresholds.items():
        torch.testing.assert_close(p.grad, expected[name])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.DGNET.SPARSITY_WEIGHT", "-1.0"), "weight of at least 0"),
        ((*ON[:2], "MODEL.DGNET.SPARSITY_BUDGET", "1.0"), "budget from 0 to below 1"),
        ((*ON, "MODEL.DGNET.EDGE_WEIGHTS", "none"), "there are no edges to pay for"),
        ((*ON, "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"), "is no DG-Net"),
    ],
)
def test_errors(opts: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        detector(*opts)


def test_classifier_has_it_too() -> None:
    cfg = load_cfg(
        str(ROOT / "configs/ImageNet-Classification/DG_R_18.yaml"), ["MODEL.DEVICE", "cpu", *ON]
    )
    model = build_classifier(cfg).train()
    loss = budget_loss(cfg, model)
    assert loss is not None
    model(torch.zeros(2, 3, 32, 32))
    assert loss().item() == pytest.approx(2 * 0.75)
