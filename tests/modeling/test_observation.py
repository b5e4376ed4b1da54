"""Recorded edge weights and their statistics, against counts by hand."""

import numpy as np
import pytest
import torch
from helpers.narrow import close_edges, narrow_backbone

from dgnet_det.errors import UserError
from dgnet_det.graph.decisions import Decisions
from dgnet_det.modeling.observation import (
    AlphaSpread,
    dgnet_of,
    dynamic_graphs,
    graph_statistics,
    record_decisions,
)

# N = 4: input, two blocks, output. Row j holds the edges into node j. In the second sample both
# edges into node 2 are closed, and with node 2 absent its edge to the output is 0 too.
ALPHA = torch.tensor(
    [
        [[0, 0, 0, 0], [0.5, 0, 0, 0], [0.0, 0.75, 0, 0], [0.25, 0.5, 1.0, 0]],
        [[0, 0, 0, 0], [0.5, 0, 0, 0], [0.0, 0.0, 0, 0], [0.25, 0.25, 0.0, 0]],
    ]
)
COMPLETE = torch.ones(4, 4, dtype=torch.bool).tril(-1)
CHAIN = torch.diag(torch.ones(3), -1).bool()


def edge_weights(alpha: torch.Tensor, weight: torch.Tensor, edges: torch.Tensor) -> Decisions:
    nodes = ("in", "1", "2", "out")
    return Decisions(alpha.ne(0).float() * edges, alpha, weight, edges, nodes, nodes)


def test_statistics_of_the_paper_wiring() -> None:
    assert graph_statistics(edge_weights(ALPHA, ALPHA, COMPLETE)) == {
        # 6 edges a sample; the first sample's sum is 3, the second's 1.
        "mean_weight": pytest.approx(4 / 12),
        "open_edges": pytest.approx((5 + 3) / 12),
        "absent_nodes": pytest.approx(1 / 4),
    }


def test_statistics_of_the_residual_wiring() -> None:
    weight = torch.where(CHAIN, 1.0, ALPHA * -2)
    assert graph_statistics(edge_weights(ALPHA, weight, COMPLETE & ~CHAIN)) == {
        # The further edges are 0 → 2, 0 → 3 and 1 → 3.
        "mean_weight": pytest.approx(-2 * (0 + 0.25 + 0.5 + 0 + 0.25 + 0.25) / 6),
        "open_edges": pytest.approx(4 / 6),
        "absent_nodes": 0,
    }


def test_absent_nodes() -> None:
    absent = edge_weights(ALPHA, ALPHA, COMPLETE).absent()
    # The input has no edges into it, and the output is never absent.
    assert absent.nonzero().tolist() == [[1, 2]]


def test_spread_of_alpha_is_numpys() -> None:
    spread = AlphaSpread()
    assert spread.pop() == {}
    images = torch.rand(5, 4, 4) * COMPLETE
    for batch in (images[:3], images[3:]):
        spread.add({"res2.0": edge_weights(batch, batch, COMPLETE)})
    std = np.std([image[COMPLETE].numpy() for image in images], axis=0, ddof=1)
    assert spread.pop() == {
        "alpha_std": pytest.approx(std.mean(), rel=1e-5),
        "alpha_std_max": pytest.approx(std.max(), rel=1e-5),
    }
    assert spread.pop() == {}


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_recording(wiring: str) -> None:
    backbone = narrow_backbone("MODEL.DGNET.WIRING", wiring, "MODEL.RESNETS.OUT_FEATURES", ["res3"])
    model = torch.nn.Sequential(backbone)
    assert dgnet_of(model) is backbone
    assert list(dynamic_graphs(model)) == ["res2.0", "res3.0"]
    if wiring == "paper":
        close_edges(model, "res3.0", (0, 1), (0, 2), (0, 3))
    else:
        close_edges(model, "res3.0", (0, 2), (0, 3))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), record_decisions(model) as latest:
        assert latest == {}
        model(images[:1])
        assert latest["res2.0"].value.shape == (1, 4, 4)
        model(images)
    weights = latest["res2.0"]
    assert weights.value.shape == weights.weight.shape == weights.gate.shape == (2, 4, 4)
    assert torch.equal(weights.learned, COMPLETE if wiring == "paper" else COMPLETE & ~CHAIN)
    statistics = {name: graph_statistics(weights) for name, weights in latest.items()}
    assert statistics["res2.0"]["open_edges"] == 1
    if wiring == "paper":
        # Without its one input node 1 is absent; without both of its inputs so is node 2; the
        # output's strongest edge stays open.
        assert statistics["res3.0"]["absent_nodes"] == 1
        assert statistics["res3.0"]["open_edges"] == pytest.approx(1 / 6)
    else:
        assert statistics["res2.0"]["mean_weight"] == 0  # γ
        assert statistics["res3.0"]["absent_nodes"] == 0
        assert statistics["res3.0"]["open_edges"] == pytest.approx(1 / 3)

    recorded = dict(latest)
    with torch.no_grad():
        model(torch.randn(3, 3, 64, 64))
    assert latest == recorded  # nothing is recorded after the context


def test_a_plain_network_has_no_graphs() -> None:
    backbone = narrow_backbone("MODEL.DGNET.WIRING", "residual", "MODEL.DGNET.EDGE_WEIGHTS", "none")
    with torch.no_grad(), record_decisions(backbone) as latest:
        backbone(torch.randn(1, 3, 32, 32))
    assert latest == dynamic_graphs(backbone) == {}


def test_a_model_without_a_dgnet_is_told() -> None:
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE\.NAME: Linear is no DG-Net"):
        dgnet_of(torch.nn.Linear(1, 1))
