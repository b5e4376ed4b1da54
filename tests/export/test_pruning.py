"""Pruned graphs and detectors against the whole ones, with counts by hand."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import config, route_at_random, small_predictor
from fvcore.nn import parameter_count
from graphs import KINDS, make_blocks, make_graph, random_batch, weights_of
from PIL import Image
from torch import nn

from configs import ROOT
from dgnet_det.analysis.counts import backbone_counts, backbone_of
from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import load_predictor
from dgnet_det.export.pruning import load_pruned
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.graph.topology import Edge
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dynamic_graphs, graph_statistics, record_wiring

# By path: Detectron2's wheel has a package named tools too.
main = runpy.run_path(str(ROOT / "tools/prune_model.py"))["main"]


def pruned_graph(
    graph: DynamicGraph, edges: set[Edge], kind: str, wiring: str, edge_weights: str, stride: int
) -> DynamicGraph:
    """What is left of a graph of :func:`make_graph` with 4 blocks without ``edges``."""
    blocks = make_blocks(kind, [6] + [8] * 4, stride, wiring)
    smaller = DynamicGraph(
        blocks,  # type: ignore[arg-type]
        wiring=wiring,
        edge_weights=edge_weights,
        norm="BN",
        pruned=edges,
    )
    # load_pruned() looks for graphs inside a model.
    load_pruned(nn.Sequential(smaller.double().eval()), nn.Sequential(graph))
    return smaller


def closed_edges(graph: DynamicGraph, x: torch.Tensor) -> set[Edge]:
    opened = weights_of(graph, x).alpha.ne(0).any(dim=0)
    return {(i, j) for j, i in (graph.routed_edges() & ~opened).nonzero().tolist()}


@pytest.mark.parametrize("edge_weights", ["dynamic", "static"])
@pytest.mark.parametrize("wiring", ["paper", "residual"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_without_its_closed_edges_computes_the_same(
    kind: str, wiring: str, edge_weights: str
) -> None:
    vanished = 0
    for trial in range(8):
        torch.manual_seed(trial)
        graph = make_graph(kind, wiring, edge_weights)
        x, _ = random_batch()
        edges = closed_edges(graph, x)
        smaller = pruned_graph(graph, edges, kind, wiring, edge_weights, 2)
        vanished += len(graph.nodes) - len(smaller.nodes)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                whole, left = graph(x), smaller(x)
                torch.testing.assert_close(left, whole, rtol=1e-12, atol=1e-12)
        if not smaller.plain:
            whole_alpha, alpha = weights_of(graph, x).alpha, weights_of(smaller, x).alpha
            routed = smaller.routed_edges()
            torch.testing.assert_close(alpha[:, routed], whole_alpha[:, routed], rtol=1e-12, atol=0)
            assert not alpha[:, graph.routed_edges() & ~routed].any()
    assert (vanished > 0) == (wiring == "paper")


def test_the_input_is_not_overwritten_where_it_alone_feeds_the_output() -> None:
    """All blocks pruned and nothing to project: what the graph is given may have other readers."""
    blocks = make_blocks("inverted", [8, 8], 1, "paper")
    graph = DynamicGraph(blocks, wiring="paper", edge_weights="dynamic", norm="BN", pruned={(0, 1)})  # type: ignore[arg-type]
    graph.eval()
    x = torch.randn(2, 8, 5, 5)
    before = x.clone()
    with torch.no_grad():
        output = graph(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(output, x / 2)
    assert not graph.nodes
    assert sum(p.numel() for p in graph.parameters()) == 8 + 1 + 1  # one router, one threshold


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_everything_that_is_left_can_be_trained(wiring: str) -> None:
    edges: set[Edge] = {(0, 2), (1, 3), (0, 4)} if wiring == "residual" else {(0, 2), (2, 5)}
    graph = make_graph("bottleneck", wiring)
    nn.init.constant_(graph.thresholds, -1.0)
    smaller = pruned_graph(graph, edges, "bottleneck", wiring, "dynamic", 2).train()
    smaller(random_batch()[0]).square().sum().backward()
    for name, parameter in smaller.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def prune(tmp_path: Path, *arguments: str, to: str = "pruned") -> dict[str, Any]:
    """The JSON of tools/prune_model.py."""
    main(["--output", str(tmp_path / to), "--json", str(tmp_path / "out.json"), *arguments])
    return json.loads((tmp_path / "out.json").read_text())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three noise images of different shapes and contrasts."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(96, 96), (96, 120), (140, 96)]):
        pixels = rng.integers(0, 256 >> i, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def detector(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """A small detector of the wiring ``request.param``: its config and overrides, its checkpoint
    among them."""
    opts = ["MODEL.DGNET.WIRING", request.param]
    predictor = small_predictor("faster", *opts)
    path = tmp_path / "model.pth"
    torch.save({"model": predictor.model.state_dict(), "class_names": ["tree"] * 80}, path)
    cfg = tmp_path / "config.yaml"
    cfg.write_text(predictor.cfg.dump())
    return ["--config-file", str(cfg), "MODEL.WEIGHTS", str(path)]


def every_graph(model: nn.Module) -> list[DynamicGraph]:
    return [module for module in model.modules() if isinstance(module, DynamicGraph)]


def load_detector_model(config_file: Path | str, *opts: str) -> nn.Module:
    return load_predictor(load_cfg(str(config_file), list(opts))).model


@pytest.mark.parametrize("detector", ["paper", "residual"], indirect=True)
def test_the_tool_prunes_what_is_closed_for_all_images(
    detector: list[str], tmp_path: Path, images: Path
) -> None:
    opts = ["--input", str(images), *detector, "MODEL.DGNET.SPARSITY_WEIGHT", "1.0"]
    report = prune(tmp_path, *opts)
    assert report["largest_difference"] < 1e-6
    assert report["num_images"] == 3
    whole = load_detector_model(detector[1], *detector[2:])
    left_cfg = load_cfg(str(tmp_path / "pruned/config.yaml"))
    assert left_cfg.MODEL.DGNET.SPARSITY_WEIGHT == 0
    left = load_predictor(left_cfg).model

    # Edge by edge, the wirings of both are the same, and what was closed for all is gone.
    opened: dict[str, torch.Tensor] = {}
    for file in sorted(images.iterdir()):
        image = torch.tensor(np.array(Image.open(file)).transpose(2, 0, 1).copy())
        with torch.no_grad(), record_wiring(whole) as before, record_wiring(left) as after:
            whole([{"image": image}])
            left([{"image": image}])
        for name in dynamic_graphs(left):
            routed = after[name].routed()
            whole_alpha, alpha = before[name].alpha[:, routed], after[name].alpha[:, routed]
            torch.testing.assert_close(alpha, whole_alpha, rtol=1e-5, atol=0)
            opened[name] = opened.get(name, False) | after[name].alpha[0].ne(0)
    graphs = dynamic_graphs(left)
    for name, graph in graphs.items():
        if graph.residual:
            assert torch.equal(opened[name] & graph.routed_edges(), graph.routed_edges())
    wholes = dynamic_graphs(whole)
    edges = [sum(int(g.routed_edges().sum()) for g in gs.values()) for gs in (wholes, graphs)]
    assert [report["before"]["edges"], report["after"]["edges"]] == edges
    assert edges[0] > edges[1]
    blocks = [sum(len(g.nodes) for g in every_graph(model)) for model in (whole, left)]
    assert [report["before"]["blocks"], report["after"]["blocks"]] == blocks
    for key, model in (("before", whole), ("after", left)):
        assert report[key]["params"] == parameter_count(backbone_of(model))[""]
    assert report["before"]["params"] > report["after"]["params"]
    assert report["before"]["macs"] >= report["after"]["macs"]
    assert report["before"]["all_open_macs"] > report["after"]["all_open_macs"]
    assert load_predictor(load_cfg(str(tmp_path / "pruned/config.yaml"))).class_names[0] == "tree"


@pytest.mark.parametrize("detector", ["paper"], indirect=True)
def test_pruning_in_two_steps(detector: list[str], tmp_path: Path, images: Path) -> None:
    """A pruned detector is a detector: raised thresholds prune it further, to what one step
    leaves."""
    image = ["--input", str(images / "0.png")]
    pruned = ["--config-file", str(tmp_path / "pruned/config.yaml")]
    prune(tmp_path, *image, *detector)
    twice = prune(tmp_path, *image, "--threshold", "0.6", *pruned, to="twice")
    once = prune(tmp_path, *image, "--threshold", "0.6", *detector, to="once")
    assert twice["before"]["edges"] > twice["after"]["edges"] == once["after"]["edges"]
    state_twice, state_once = (
        load_detector_model(tmp_path / name / "config.yaml").state_dict()
        for name in ("twice", "once")
    )
    assert state_twice.keys() == state_once.keys()
    assert all(torch.equal(x, state_once[name]) for name, x in state_twice.items())


def narrow(*opts: str) -> DGNet:
    """The backbone of an untrained detector with batch norm, of narrow channels where it is a
    ResNet."""
    cfg = load_cfg(
        config("faster"),
        [
            "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN",
            "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNETS.DEPTH", "18",
            "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", *opts,
        ],
    )  # fmt: skip
    return backbone_of(build_model(cfg))


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
    whole, left = narrow(*opts), narrow(*opts, "MODEL.DGNET.PRUNED_EDGES", str(edges))
    assert parameter_count(whole)[""] - parameter_count(left)[""] == params
    before, after = (backbone_counts(b.eval(), (64, 64)) for b in (whole, left))
    assert before.conv_macs - after.conv_macs == conv_macs
    assert before.macs - after.macs == conv_macs + other_macs


def test_residual_graph_without_edges_is_the_plain_stage() -> None:
    opts = ("MODEL.DGNET.FAMILY", "resnet", "MODEL.DGNET.WIRING", "residual")
    edges = str([f"res{k}.0:{edge}" for k in (2, 3, 4, 5) for edge in ("0-2", "0-3", "1-3")])
    plain = narrow(*opts, "MODEL.DGNET.EDGE_WEIGHTS", "none")
    assert narrow(*opts, "MODEL.DGNET.PRUNED_EDGES", edges).state_dict().keys() == (
        plain.state_dict().keys()
    )


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_a_trace_follows_a_second_image(wiring: str) -> None:
    edges = "['res4.0:0-3', 'res4.0:2-4', 'res3.0:1-4']"
    if wiring == "paper":
        edges = "['res4.0:0-1', 'res4.0:2-4', 'res5.1:0-1']"
    opts = ("MODEL.DGNET.FAMILY", "mobilenetv2", "MODEL.DGNET.WIRING", wiring)
    backbone = narrow(*opts, "MODEL.DGNET.PRUNED_EDGES", edges).eval()
    route_at_random(backbone)

    first, second = torch.randn(1, 3, 64, 96), torch.rand(1, 3, 96, 64) * 9
    with torch.no_grad():
        traced = torch.jit.trace(backbone, first, strict=False, check_trace=False)
        expected, got = backbone(second), traced(second)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def test_statistics_count_the_edges_that_are_left() -> None:
    opts = ("MODEL.DGNET.FAMILY", "resnet", "MODEL.DGNET.WIRING", "paper")
    backbone = narrow(*opts, "MODEL.DGNET.PRUNED_EDGES", "['res4.0:0-2']").eval()
    with torch.no_grad(), record_wiring(backbone) as latest:
        backbone(torch.randn(1, 3, 64, 64))
    assert latest["res4.0"].routed().sum() == 5
    assert graph_statistics(latest["res4.0"])["open_edges"] == 1


def test_whole_weights_do_not_load_into_a_pruned_config(tmp_path: Path) -> None:
    opts = ("MODEL.DGNET.FAMILY", "resnet", "MODEL.DGNET.WIRING", "residual")
    torch.save({"model": narrow(*opts).state_dict()}, tmp_path / "model.pth")
    left = narrow(*opts, "MODEL.DGNET.PRUNED_EDGES", "['res4.0:0-2']")
    with pytest.raises(UserError, match=r"MODEL\.DGNET\.PRUNED_EDGES.*res4\.0\.routers\.0"):
        DGNetCheckpointer(left).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.DGNET.PRUNED_EDGES", "['res4.0:0-9']"], r"PRUNED_EDGES: res4\.0: 0-9 does not"),
        (["MODEL.DGNET.PRUNED_EDGES", "['res4.0:1-2']"], "1-2 is of the fixed chain"),
        (["MODEL.DGNET.PRUNED_EDGES", "['res4.7:0-2']"], r"there is no graph res4\.7"),
        (["MODEL.DGNET.PRUNED_EDGES", "['res4']"], "'res4': give graph:from-to"),
        (
            ["MODEL.DGNET.PRUNED_EDGES", "['res4.0:0-2']", "MODEL.DGNET.EDGE_WEIGHTS", "none"],
            "EDGE_WEIGHTS none there are none",
        ),
    ],
)
def test_errors_of_the_key(opts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        narrow("MODEL.DGNET.FAMILY", "mobilenetv2", "MODEL.DGNET.WIRING", "residual", *opts)


@pytest.mark.parametrize("detector", ["residual"], indirect=True)
def test_errors_of_the_tool(detector: list[str], tmp_path: Path, images: Path) -> None:
    def fails(message: str, *arguments: str, to: str = "pruned") -> None:
        with pytest.raises(UserError, match=message):
            main(["--output", str(tmp_path / to), *arguments])
        assert not (tmp_path / "pruned").exists()

    (tmp_path / "empty").mkdir()
    fails("empty: no image in this folder", "--input", str(tmp_path / "empty"), *detector)
    fails("exists: name a new folder", "--input", str(images), *detector, to="images")
    everything = ["--input", str(images), *detector]
    fails("MODEL.WEIGHTS: empty", *everything, "MODEL.WEIGHTS", "")
    plain = ["MODEL.DGNET.EDGE_WEIGHTS", "none"]
    static = {name: x for name, x in torch.load(detector[3], weights_only=True)["model"].items()
              if ".nodes." in name or not name.startswith("backbone.bottom_up.res")}  # fmt: skip
    torch.save({"model": static}, tmp_path / "static.pth")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "static.pth")]
    fails("no edges to prune", *everything, *plain, *weights)
    model = torch.load(detector[3], weights_only=True)
    for name, tensor in model["model"].items():
        if name.endswith("thresholds"):
            tensor.fill_(-1.0)
    torch.save(model, detector[3])
    fails("every edge is open for some of the 3 images: nothing to prune", *everything)


@pytest.mark.parametrize("detector", ["residual"], indirect=True)
def test_nothing_is_written_where_the_outputs_differ(
    detector: list[str], tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_wrongly(pruned: nn.Module, model: nn.Module) -> None:
        load_pruned(pruned, model)
        next(iter(dynamic_graphs(pruned).values())).thresholds.data.add_(1.0)

    monkeypatch.setitem(main.__globals__, "load_pruned", load_wrongly)
    with pytest.raises(UserError, match="finds something else"):
        prune(tmp_path, "--input", str(images), *detector)
    assert not (tmp_path / "pruned").exists()
