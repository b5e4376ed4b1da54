"""Pruned graphs and detectors against the whole ones, with counts by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import route_at_random
from fvcore.nn import parameter_count
from graphs import KINDS, make_blocks, make_graph, random_batch, weights_of
from narrow import NARROW, R_18, narrow_backbone
from PIL import Image
from prune_model import main
from torch import nn

from dgnet_det.analysis.counts import backbone_counts
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import load_predictor
from dgnet_det.export.pruning import load_pruned
from dgnet_det.graph.stage import DynamicGraph, PlainStage
from dgnet_det.graph.topology import Edge
from dgnet_det.graph.wirings import PaperGraph
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dgnet_of, dynamic_graphs, record_edge_weights


def pruned_graph(
    graph: DynamicGraph, edges: set[Edge], kind: str, wiring: str, edge_weights: str
) -> DynamicGraph:
    """What is left of a graph of :func:`make_graph` without ``edges``."""
    blocks: Any = make_blocks(kind, [6] + [8] * 4, 2, wiring)
    smaller = type(graph)(blocks, edge_weights=edge_weights, norm="BN", pruned=edges)
    # load_pruned() looks for graphs inside a model.
    load_pruned(nn.Sequential(smaller.double().eval()), nn.Sequential(graph))
    return smaller


def closed_edges(graph: DynamicGraph, x: torch.Tensor) -> set[Edge]:
    weights = weights_of(graph, x)
    closed = weights.edges & weights.alpha.eq(0).all(dim=0)
    return {(i, j) for j, i in closed.nonzero().tolist()}


@pytest.mark.parametrize("edge_weights", ["dynamic", "static"])
@pytest.mark.parametrize("wiring", ["paper", "residual"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_without_its_closed_edges_computes_the_same(
    kind: str, wiring: str, edge_weights: str
) -> None:
    vanished = 0
    for trial in range(6):
        torch.manual_seed(trial)
        graph = make_graph(kind, wiring, edge_weights)
        x, _ = random_batch()
        edges = closed_edges(graph, x)
        smaller = pruned_graph(graph, edges, kind, wiring, edge_weights)
        vanished += len(graph.nodes) - len(smaller.nodes)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(smaller(x), graph(x), rtol=1e-12, atol=1e-12)
        before, after = weights_of(graph, x), weights_of(smaller, x)
        left = after.edges
        torch.testing.assert_close(after.alpha[:, left], before.alpha[:, left], rtol=1e-12, atol=0)
        assert not after.alpha[:, before.edges & ~left].any()
    assert (vanished > 0) == (wiring == "paper")


def test_the_input_is_not_overwritten_where_it_alone_feeds_the_output() -> None:
    """All blocks pruned and nothing to project: what the graph is given may have other readers."""
    blocks: Any = make_blocks("inverted", [8, 8], 1, "paper")
    graph = PaperGraph(blocks, edge_weights="static", norm="BN", pruned={(0, 1)}).eval()
    x = torch.randn(2, 8, 5, 5)
    before = x.clone()
    with torch.no_grad():
        output = graph(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(output, 0.98 * x)
    assert not graph.nodes
    assert sum(p.numel() for p in graph.parameters()) == 1 + 1  # one router, one threshold


def test_nothing_is_left_for_routers() -> None:
    """The residual wiring is then the plain network, and no part of it waits for a gradient."""
    graph, (x, _) = make_graph("basic", "residual"), random_batch()
    every = {(i, j) for j, i in graph.edges.nonzero().tolist()}
    smaller = pruned_graph(graph, every, "basic", "residual", "dynamic")
    torch.testing.assert_close(smaller(x), PlainStage.forward(smaller, x))
    smaller.train()(x).sum().backward()
    assert all(p.grad is not None for p in smaller.parameters() if p.requires_grad)
    edges = [f"res{k}.0:{i}-{j}" for k in (3, 5) for i, j in ((0, 2), (0, 3), (1, 3))]
    left = narrow_backbone("MODEL.DGNET.WIRING", "residual", "MODEL.DGNET.PRUNED_EDGES", edges)
    assert list(dynamic_graphs(left)) == ["res2.0", "res4.0"]


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_everything_that_is_left_can_be_trained(wiring: str) -> None:
    edges: set[Edge] = {(0, 2), (1, 3), (0, 4)} if wiring == "residual" else {(0, 2), (2, 5)}
    graph = make_graph("bottleneck", wiring)
    nn.init.constant_(graph.thresholds, -1.0)
    smaller = pruned_graph(graph, edges, "bottleneck", wiring, "dynamic").train()
    smaller(random_batch()[0]).square().sum().backward()
    for name, parameter in smaller.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three noise images of different shapes and contrasts."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(64, 64), (64, 80), (96, 64)]):
        pixels = rng.integers(0, 256 >> i, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module", params=["paper", "residual"])
def detector(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[str]:
    """A small detector of each wiring: its config and overrides, its checkpoint among them."""
    folder = tmp_path_factory.mktemp(request.param)
    opts = ["MODEL.DGNET.WIRING", request.param, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    cfg = load_cfg(R_18, [*NARROW, *opts])
    torch.manual_seed(0)
    model = build_model(cfg)
    route_at_random(model)
    torch.save({"model": model.state_dict(), "class_names": ["tree"] * 80}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return ["--config-file", str(folder / "config.yaml"), "MODEL.WEIGHTS",
            str(folder / "model.pth")]  # fmt: skip


def prune(tmp_path: Path, *arguments: str, to: str = "pruned") -> dict[str, Any]:
    """The JSON of tools/prune_model.py."""
    main(["--output", str(tmp_path / to), "--json", str(tmp_path / "out.json"), *arguments])
    return json.loads((tmp_path / "out.json").read_text())


def load_model(config_file: Path | str, *opts: str) -> nn.Module:
    return load_predictor(load_cfg(str(config_file), list(opts))).model


def test_the_tool_prunes_what_is_closed_for_all_images(
    detector: list[str], tmp_path: Path, images: Path
) -> None:
    opts = ["--input", str(images), *detector, "MODEL.DGNET.SPARSITY_WEIGHT", "1.0"]
    report = prune(tmp_path, *opts)
    assert report["largest_difference"] < 1e-5
    assert report["num_images"] == 3
    whole = load_model(detector[1], *detector[2:])
    written = {path.name for path in (tmp_path / "pruned").iterdir()}
    assert written == {"config.yaml", "model.pth"}
    left_cfg = load_cfg(str(tmp_path / "pruned/config.yaml"))
    assert left_cfg.MODEL.DGNET.SPARSITY_WEIGHT == 0
    predictor = load_predictor(left_cfg)
    assert predictor.class_names[0] == "tree"
    left = predictor.model

    # Edge by edge, the edge weights of both are the same, and what was closed for all is gone.
    opened: dict[str, torch.Tensor] = {}
    for file in sorted(images.iterdir()):
        image = torch.tensor(np.array(Image.open(file)).transpose(2, 0, 1).copy())
        with torch.no_grad(), record_edge_weights(whole) as was, record_edge_weights(left) as now:
            whole([{"image": image}])
            left([{"image": image}])
        for name, weights in now.items():
            edges = weights.edges
            torch.testing.assert_close(
                weights.alpha[:, edges], was[name].alpha[:, edges], rtol=1e-5, atol=0
            )
            opened[name] = opened.get(name, False) | weights.alpha[0].ne(0)
            if weights.fixed_chain and file.name == "2.png":
                assert torch.equal(opened[name] & edges, edges)
    for key, model in (("before", whole), ("after", left)):
        edges = sum(int(graph.edges.sum()) for graph in dynamic_graphs(model).values())
        blocks = sum(len(stage.nodes) for stage in model.modules() if isinstance(stage, PlainStage))
        params = parameter_count(dgnet_of(model))[""]
        assert [report[key][name] for name in ("edges", "blocks", "params")] == [
            edges, blocks, params
        ]  # fmt: skip
    for name in ("edges", "params", "all_open_macs"):
        assert report["before"][name] > report["after"][name]
    assert report["before"]["macs"] >= report["after"]["macs"]


@pytest.mark.parametrize("detector", ["paper"], indirect=True)
def test_pruning_in_two_steps(detector: list[str], tmp_path: Path, images: Path) -> None:
    """A pruned detector is a detector: raised thresholds prune it further, to what one step
    leaves."""
    image = ["--input", str(images / "0.png")]
    prune(tmp_path, *image, *detector)
    pruned = ["--config-file", str(tmp_path / "pruned/config.yaml")]
    model = load_model(pruned[1])
    with torch.no_grad(), record_edge_weights(model) as edge_weights:
        pixels = np.array(Image.open(images / "0.png")).transpose(2, 0, 1).copy()
        model([{"image": torch.tensor(pixels)}])
    alpha = torch.cat([w.alpha[0, w.edges] for w in edge_weights.values()])
    raised = [*image, "--threshold", str(float(alpha[alpha > 0].median()))]
    twice = prune(tmp_path, *raised, *pruned, to="twice")
    once = prune(tmp_path, *raised, *detector, to="once")
    assert twice["before"]["edges"] > twice["after"]["edges"] == once["after"]["edges"]
    state_twice, state_once = (
        load_model(tmp_path / name / "config.yaml").state_dict() for name in ("twice", "once")
    )
    assert state_twice.keys() == state_once.keys()
    # An edge of a node that went for lack of others may be named in one of them alone.
    different = [k for k, x in state_twice.items() if not torch.equal(x, state_once[k])]
    assert all(name.endswith(".pruned") for name in different)


# Channels C and pixels P of the graph's output at 64 x 64, and what goes: parameters, multiply-adds
# of convolutions, and of pooling, routers and sums.
COUNTS = {
    # Node 2 of 2, of two 3x3 convolutions with norms, its router to one node, and a row each of the
    # routers of nodes 0 and 1; three edges.
    "paper": (
        ("MODEL.DGNET.FAMILY", "resnet", "MODEL.DGNET.WIRING", "paper"),
        ["res4.0:0-2", "res4.0:1-2"],
        2 * 9 * 32**2 + 2 * 2 * 32 + 3 * (32 + 1) + 1,
        2 * 9 * 32**2 * 16,
        32 * 16 + 3 * 32 + 3 * 32 * 16,
    ),
    # Node 0's router to two nodes, τ and γ; two edges.
    "residual": (
        ("MODEL.DGNET.FAMILY", "resnet", "MODEL.DGNET.WIRING", "residual"),
        ["res3.0:0-2", "res3.0:0-3"],
        2 * (16 + 1) + 1 + 2,
        0,
        16 * 64 + 2 * 16 + 2 * 16 * 64,
    ),
    # And the projection with its norm, from 24 to 32 channels: MobileNetV2 has none to share.
    "residual MobileNetV2": (
        ("MODEL.DGNET.FAMILY", "mobilenetv2", "MODEL.DGNET.WIRING", "residual"),
        ["res3.0:0-2", "res3.0:0-3", "res3.0:0-4"],
        3 * (32 + 1) + 1 + 3 + 24 * 32 + 2 * 32,
        24 * 32 * 64,
        32 * 64 + 3 * 32 + 3 * 32 * 64,
    ),
}


@pytest.mark.parametrize("case", COUNTS)
def test_counts_by_hand(case: str) -> None:
    opts, edges, params, conv_macs, other_macs = COUNTS[case]
    opts = (*opts, "MODEL.RESNETS.NORM", "BN")
    whole, left = narrow_backbone(*opts), narrow_backbone(*opts, "MODEL.DGNET.PRUNED_EDGES", edges)
    assert parameter_count(whole)[""] - parameter_count(left)[""] == params
    before, after = (backbone_counts(backbone, (64, 64)) for backbone in (whole, left))
    assert before.conv_macs - after.conv_macs == conv_macs
    assert before.macs - after.macs == conv_macs + other_macs


@pytest.mark.parametrize(
    ("edges", "edge_weights", "message"),
    [
        ("res4.0:0-9", "dynamic", r"PRUNED_EDGES: res4\.0: 0-9 does not"),
        ("res4.0:1-2", "dynamic", "1-2 is of the fixed chain"),
        ("res4.7:0-2", "dynamic", r"there is no such stage, or it is plain: res4\.7"),
        ("res4", "dynamic", "'res4': give graph:from-to"),
        ("res4.0:0-2", "none", r"there is no such stage, or it is plain: res4\.0"),
    ],
)
def test_errors_of_the_key(edges: str, edge_weights: str, message: str) -> None:
    opts = ("MODEL.DGNET.WIRING", "residual", "MODEL.DGNET.EDGE_WEIGHTS", edge_weights)
    with pytest.raises(UserError, match=message):
        narrow_backbone(*opts, "MODEL.DGNET.PRUNED_EDGES", [edges])


@pytest.mark.parametrize("detector", ["residual"], indirect=True)
def test_errors_of_the_tool(
    detector: list[str], tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(message: str, *arguments: str, to: str = "pruned") -> None:
        with pytest.raises(UserError, match=message):
            main(["--input", str(images), *detector, "--output", str(tmp_path / to), *arguments])
        assert not (tmp_path / "pruned").exists()

    (tmp_path / "empty").mkdir()
    fails("exists: name a new folder", to="empty")
    fails("MODEL.WEIGHTS: empty", "MODEL.WEIGHTS", "")
    fails("a threshold of 7: α lies between 0 and 1", "--threshold", "7")
    checkpoint = torch.load(detector[3], weights_only=True)["model"]
    static = {name: x for name, x in checkpoint.items()
              if ".nodes." in name or not name.startswith("backbone.bottom_up.res")}  # fmt: skip
    torch.save({"model": static}, tmp_path / "static.pth")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "static.pth")]
    fails("no edges to prune", "MODEL.DGNET.EDGE_WEIGHTS", "none", *weights)
    for name, tensor in checkpoint.items():
        if name.endswith("thresholds"):
            tensor.fill_(-1.0)
    torch.save({"model": checkpoint}, tmp_path / "open.pth")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "open.pth")]
    fails("every edge is open for some of the 3 images: nothing to prune", *weights)

    def load_wrongly(pruned: nn.Module, model: nn.Module) -> None:
        load_pruned(pruned, model)
        next(iter(dynamic_graphs(pruned).values())).thresholds.data.add_(1.0)

    monkeypatch.setattr("dgnet_det.export.pruning.load_pruned", load_wrongly)
    fails(r"\.png: the pruned detector finds something else")
