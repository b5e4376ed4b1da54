"""The sparsity loss: costs against counts by hand and against operators, and how it is trained."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectors import SMALL, config, route_at_random
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from test_analysis import close, narrow_r18
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dgnet_det.analysis.counts import backbone_counts, backbone_of
from dgnet_det.config import load_cfg
from dgnet_det.engine.trainer import Trainer
from dgnet_det.errors import UserError
from dgnet_det.graph.routing import SURROGATE_SLOPE
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.budget import SIDE, SparsityLoss, edge_costs, sparsity_loss
from dgnet_det.modeling.classifier import build_classifier

PAPER = ("MODEL.DGNET.WIRING", "paper")
RESIDUAL = ("MODEL.DGNET.WIRING", "residual")


def small_backbone(*opts: str) -> DGNet:
    """A ResNet-18 of 8, 16, 32 and 64 channels with batch norm, untrained: every α is 0.5, every τ
    is 0."""
    return backbone_of(narrow_r18(*opts))


def run(backbone: DGNet, side: int = 64) -> None:
    backbone.train()(torch.randn(2, 3, side, side))


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
    assert torch.equal(edge_costs(small_backbone(*PAPER))["res3.0"], expected)

    # res3 of the residual wiring, whose blocks run in any case. Its stem pools: half the size in.
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[2, 0] = expected[3, 0] = expected[3, 1] = 16 * 32**2
    assert torch.equal(edge_costs(small_backbone(*RESIDUAL))["res3.0"], expected)


def test_costs_and_what_runs_in_any_case_are_all_that_runs() -> None:
    backbone = small_backbone(*PAPER)
    nobodys = 7 * 7 * 3 * 8 * 128**2  # the stem
    for channels, out_channels, side in ((8, 8, 64), (8, 16, 32), (16, 32, 16), (32, 64, 8)):
        projection = channels * out_channels * side**2
        nobodys += projection + out_channels * side**2 + 3 * out_channels  # and node 0's router
    total = sum(float(cost.sum()) for cost in edge_costs(backbone).values())
    assert total + nobodys == backbone_counts(backbone.eval(), (SIDE, SIDE)).macs


def test_pruned_edges_cost_nothing() -> None:
    whole = edge_costs(small_backbone(*PAPER))["res3.0"]
    edges = ("MODEL.DGNET.PRUNED_EDGES", "['res3.0:1-2', 'res4.0:0-1']")
    pruned = edge_costs(small_backbone(*PAPER, *edges))
    # Node 2's only edge left bears all of the node; node 1's router has a row less.
    assert pruned["res3.0"][2].tolist() == [2 * float(whole[2, 0]) - 16 * 32**2, 0, 0, 0]
    assert pruned["res3.0"][1, 0] == whole[1, 0] - 16
    assert torch.equal(pruned["res3.0"][3], whole[3])
    # Without 0 → 1 node 1 is gone, and with it its edges.
    assert pruned["res4.0"].nonzero().tolist() == [[2, 0], [3, 0], [3, 2]]


@pytest.mark.parametrize("wiring", [PAPER, RESIDUAL])
def test_share_of_open_edges(wiring: tuple[str, str]) -> None:
    backbone = small_backbone(*wiring)
    costs = edge_costs(backbone)
    total = sum(float(cost.sum()) for cost in costs.values())
    loss = SparsityLoss(backbone, weight=3.0, budget=0.25)
    run(backbone)
    assert float(loss()) == pytest.approx(3 * (1 - 0.25))
    # In the paper wiring node 2 has no input left: its edge to the output is closed as well.
    edges = [(0, 2), (1, 2)] if wiring is PAPER else [(0, 2)]
    close(backbone, "res4", edges, residual=wiring is RESIDUAL)
    run(backbone)
    saved = sum(float(costs["res4.0"][j, i]) for i, j in edges)
    saved += float(costs["res4.0"][3, 2]) if wiring is PAPER else 0
    assert float(loss()) == pytest.approx(3 * (1 - saved / total - 0.25))


def test_gradients_are_those_of_the_surrogate() -> None:
    backbone = small_backbone(*PAPER)
    costs = edge_costs(backbone)
    total = sum(float(cost.sum()) for cost in costs.values())
    loss = SparsityLoss(backbone, weight=2.0)
    run(backbone)
    loss().backward()
    z = SURROGATE_SLOPE * 0.5  # α - τ
    slope = SURROGATE_SLOPE * math.exp(-z) / (1 + math.exp(-z)) ** 2
    for stage in backbone.stage_names:
        graph = backbone.graphs(stage)[0]
        share = costs[f"{stage}.0"] / total
        for i, nodes in graph.routed.items():
            expected = 2 * share[list(nodes), i] * slope
            # dα/db = α(1 - α) = 1/4.
            grad = graph.routers[str(i)].linear.bias.grad.double()
            torch.testing.assert_close(grad, expected / 4, rtol=1e-4, atol=0)
            tau = float(graph.thresholds.grad[i])
            assert tau == pytest.approx(-float(expected.sum()), rel=1e-4)
            assert graph.routers[str(i)].linear.weight.grad.any()


def test_no_gradient_within_the_budget() -> None:
    backbone = small_backbone(*PAPER)
    loss = SparsityLoss(backbone, weight=2.0, budget=0.9)
    close(backbone, "res4", [(0, 2), (1, 2)], residual=False)
    close(backbone, "res5", [(0, 2), (1, 2)], residual=False)
    run(backbone)
    value = loss()
    value.backward()
    assert value == 0
    assert not any(p.grad.any() for p in backbone.parameters() if p.grad is not None)


@pytest.mark.parametrize("wiring", [PAPER, RESIDUAL])
def test_training_reaches_a_budget(wiring: tuple[str, str]) -> None:
    backbone = small_backbone(*wiring)
    share, loss = (SparsityLoss(backbone, weight=1.0, budget=budget) for budget in (0.0, 0.6))
    optimizer = torch.optim.SGD(backbone.parameters(), lr=2.0)
    for _ in range(40):
        optimizer.zero_grad()
        run(backbone, side=32)
        if loss() == 0:
            break
        loss().backward()
        optimizer.step()
    assert 0 < float(share()) <= 0.6


def test_checkpointed_stages_give_the_same_gradients() -> None:
    gradients = []
    for on in ("False", "True"):
        torch.manual_seed(0)
        backbone = small_backbone(*PAPER, "MODEL.DGNET.CHECKPOINT_STAGES", on).train()
        route_at_random(backbone)
        loss = SparsityLoss(backbone, weight=1.0)
        for _ in range(2):  # what the backward pass recomputes must not stay for the next
            backbone.zero_grad()
            features = backbone(torch.randn(2, 3, 64, 64))
            (sum(f.sum() for f in features.values()) + 1e4 * loss()).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def detector(*opts: str) -> nn.Module:
    cfg = load_cfg(config("faster"), [*SMALL, *opts])
    return Trainer.build_model(cfg).train()


def losses(model: Callable, side: int = 96) -> dict[str, torch.Tensor]:
    instances = Instances((side, side))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 70.0]]))
    instances.gt_classes = torch.tensor([3])
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    with EventStorage():
        return model([{"image": image, "instances": instances}] * 2)


def test_off_by_default() -> None:
    model = detector()
    assert "loss_sparsity" not in losses(model)
    graphs = [g for stage in ("res2", "res5") for g in backbone_of(model).graphs(stage)]
    routers = [router for graph in graphs for router in graph.routers.values()]
    assert not any(module._forward_hooks for module in (model, *routers))


ON = ("MODEL.DGNET.SPARSITY_WEIGHT", "2.0", "MODEL.DGNET.SPARSITY_BUDGET", "0.25")


@pytest.mark.parametrize("autocast", [False, True])
def test_detector_returns_the_loss_in_training_alone(autocast: bool) -> None:
    model = detector(*ON)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = losses(model)
    assert float(found["loss_sparsity"]) == pytest.approx(2 * 0.75)
    assert found["loss_sparsity"].dtype == torch.float32
    sum(found.values()).backward()
    for name, parameter in model.named_parameters():
        if "thresholds" in name or "routers" in name:
            assert parameter.grad.any(), name
    with torch.no_grad():
        found = model.eval()([{"image": torch.zeros(3, 96, 96)}])
    assert list(found[0]) == ["instances"]


def test_in_distributed_data_parallel(tmp_path: Path) -> None:
    """Every parameter takes part, as DistributedDataParallel wants it, and its gradients are those
    without."""
    model = detector(*ON)
    alone = losses(model)["loss_sparsity"]
    alone.backward()
    thresholds = {n: p for n, p in model.named_parameters() if "thresholds" in n}
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
            (found["loss_sparsity"] + 0 * sum(found.values())).backward()
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
        (
            (*ON, "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            "the backbone is no DG-Net",
        ),
    ],
)
def test_errors(opts: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        detector(*opts)


def test_classifier_has_it_too() -> None:
    cfg = load_cfg(
        str(Path(config("faster")).parents[1] / "ImageNet-Classification/DG_R_18.yaml"),
        ["MODEL.DEVICE", "cpu", *ON],
    )
    model = build_classifier(cfg).train()
    loss = sparsity_loss(cfg, model)
    assert loss is not None
    model(torch.zeros(2, 3, 32, 32))
    assert float(loss()) == pytest.approx(2 * 0.75)
