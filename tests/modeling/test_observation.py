"""Recorded wirings and their statistics, against counts by hand."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from dgnet_det import build_dgnet_backbone
from dgnet_det.config import get_cfg
from dgnet_det.graph.stage import Wiring
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.observation import (
    RecordedWiring,
    dynamic_graphs,
    graph_statistics,
    record_wiring,
)

# N = 4: input, two blocks, output. Row j holds the edges into node j. In the second sample both
# edges into node 2 are closed, and with node 2 absent its edge to the output is 0 too.
ALPHA = torch.tensor(
    [
        [[0, 0, 0, 0], [0.5, 0, 0, 0], [0.0, 0.75, 0, 0], [0.25, 0.5, 1.0, 0]],
        [[0, 0, 0, 0], [0.5, 0, 0, 0], [0.0, 0.0, 0, 0], [0.25, 0.25, 0.0, 0]],
    ]
)


def test_statistics_of_the_paper_wiring() -> None:
    statistics = graph_statistics(RecordedWiring(ALPHA, ALPHA, residual=False))
    assert statistics == {
        # 6 edges a sample; the first sample's sum is 3, the second's 1.
        "mean_weight": pytest.approx(4 / 12),
        "open_edges": pytest.approx((5 + 3) / 12),
        "absent_nodes": pytest.approx(1 / 4),
    }


def test_statistics_of_the_residual_wiring() -> None:
    alpha = ALPHA.clone()
    for j in range(1, 4):
        alpha[:, j, j - 1] = 1
    weight = alpha * -2
    for j in range(1, 4):
        weight[:, j, j - 1] = 1
    statistics = graph_statistics(RecordedWiring(alpha, weight, residual=True))
    assert statistics == {
        # The further edges are 0 → 2, 0 → 3 and 1 → 3.
        "mean_weight": pytest.approx(-2 * (0 + 0.25 + 0.5 + 0 + 0.25 + 0.25) / 6),
        "open_edges": pytest.approx(4 / 6),
        "absent_nodes": 0,
    }


def test_routed_edges() -> None:
    paper = RecordedWiring(ALPHA, ALPHA, residual=False).routed()
    assert paper.nonzero().tolist() == [[1, 0], [2, 0], [2, 1], [3, 0], [3, 1], [3, 2]]
    residual = RecordedWiring(ALPHA, ALPHA, residual=True).routed()
    assert residual.nonzero().tolist() == [[2, 0], [3, 0], [3, 1]]


def test_absent_nodes() -> None:
    absent = RecordedWiring(ALPHA, ALPHA, residual=False).absent()
    # The input has no edges into it, and the output is never absent.
    assert absent.nonzero().tolist() == [[1, 2]]


def make_backbone(wiring: str, edge_weights: str = "dynamic") -> DGNet:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3"]
    cfg.MODEL.DGNET.WIRING, cfg.MODEL.DGNET.EDGE_WEIGHTS = wiring, edge_weights
    return build_dgnet_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_recording(wiring: str) -> None:
    backbone = make_backbone(wiring).eval()
    model = torch.nn.Sequential(backbone)
    assert list(dynamic_graphs(model)) == ["res2.0", "res3.0"]
    # α = 0.5 at the start; a threshold above it closes every edge out of that node.
    with torch.no_grad():
        backbone.graphs("res3")[0].thresholds[0] = 0.6
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), record_wiring(model) as latest:
        assert latest == {}
        model(images[:1])
        assert latest["res2.0"].alpha.shape == (1, 4, 4)
        model(images)
    assert latest["res2.0"].alpha.shape == latest["res2.0"].weight.shape == (2, 4, 4)
    assert latest["res2.0"].residual == (wiring == "residual")
    statistics = {name: graph_statistics(w) for name, w in latest.items()}
    assert statistics["res2.0"]["open_edges"] == 1
    assert statistics["res2.0"]["mean_weight"] == (0.5 if wiring == "paper" else 0)
    if wiring == "paper":
        # Without its one input node 1 is absent; without both of its inputs so is node 2; the
        # output's strongest edge stays open.
        assert statistics["res3.0"]["absent_nodes"] == 1
        assert statistics["res3.0"]["open_edges"] == pytest.approx(1 / 6)
    else:
        assert statistics["res3.0"]["absent_nodes"] == 0
        assert statistics["res3.0"]["open_edges"] == pytest.approx(1 / 3)

    recorded = dict(latest)
    with torch.no_grad():
        model(torch.randn(3, 3, 64, 64))
    assert latest == recorded  # nothing is recorded after the context


def test_observer_is_handed_a_wiring() -> None:
    seen: list[object] = []
    backbone = make_backbone("paper").eval()
    hook = backbone.graphs("res2")[0].observer.register_forward_hook(lambda m, i, o: seen.append(o))
    backbone(torch.randn(1, 3, 32, 32))
    hook.remove()
    assert [type(wiring) for wiring in seen] == [Wiring]


def test_plain_network_has_no_wiring() -> None:
    backbone = make_backbone("residual", "none").eval()
    with torch.no_grad(), record_wiring(backbone) as latest:
        backbone(torch.randn(1, 3, 32, 32))
    assert latest == dynamic_graphs(backbone) == {}
