"""The backbone as Detectron2 uses it: features, stages, freezing, padding, tracing, precision."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from helpers.detectors import route_at_random
from helpers.narrow import narrow_backbone
from torch import nn

from dgnet_det.errors import UserError
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.modeling.backbone import DGNet, base
from dgnet_det.modeling.observation import dynamic_graphs, record_decisions

PAPER = ("MODEL.DGNET.WIRING", "paper")
RESIDUAL = ("MODEL.DGNET.WIRING", "residual")
WIRINGS = pytest.mark.parametrize("wiring", [PAPER, RESIDUAL], ids=["paper", "residual"])


def routed_backbone(*opts: object) -> DGNet:
    """A narrow backbone whose edge weights follow the image; some of its edges are closed."""
    backbone = narrow_backbone(*opts)
    route_at_random(backbone)
    return backbone


@WIRINGS
@pytest.mark.parametrize("family", ["resnet", "mobilenetv2"])
def test_features_have_the_declared_shapes_at_any_size(
    family: str, wiring: tuple[str, str]
) -> None:
    features_of = ["stem", "res3", "res4"]
    opts = ("MODEL.DGNET.FAMILY", family, "MODEL.RESNETS.OUT_FEATURES", features_of)
    backbone = routed_backbone(*wiring, *opts)
    assert not hasattr(backbone, "res5")
    for height, width in ((64, 64), (37, 91)):
        features = backbone(torch.randn(2, 3, height, width))
        assert list(features) == features_of
        for name, spec in backbone.output_shape().items():
            size = (-(-height // spec.stride), -(-width // spec.stride))
            assert features[name].shape == (2, spec.channels, *size)


@WIRINGS
@pytest.mark.parametrize("family", ["resnet", "mobilenetv2"])
def test_a_frozen_stage_freezes_whole_and_everything_else_trains(
    family: str, wiring: tuple[str, str]
) -> None:
    opts = ("MODEL.DGNET.FAMILY", family, "MODEL.RESNETS.NORM", "BN")
    backbone = narrow_backbone(*wiring, *opts, "MODEL.BACKBONE.FREEZE_AT", 3)
    frozen = ("stem.", "res2.", "res3.")
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    norms = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d)
    }
    for name, norm in norms.items():
        assert isinstance(norm, FrozenBatchNorm2d) == name.startswith(frozen), name

    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.05)
    x = torch.randn(2, 3, 64, 64)
    backbone.train()
    for _ in range(2):  # routers and τ have a gradient once γ is not 0
        optimizer.zero_grad()
        features = backbone(x).values()
        sum((f / (1 + f.detach().abs().mean()) - 1).square().mean() for f in features).backward()
        optimizer.step()
    for name, p in backbone.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        if p.requires_grad and any(part in name for part in ("routers", "gammas", "thresholds")):
            of_edges = p.grad.ne(0).any(dim=1) if p.dim() == 2 else p.grad.ne(0)
            assert of_edges.all(), name


def test_stages_that_are_not_named_are_plain() -> None:
    two_graphs = narrow_backbone(*RESIDUAL, "MODEL.DGNET.STAGES", ["res3", "res5"])
    assert list(dynamic_graphs(two_graphs)) == ["res3.0", "res5.0"]
    routing = ("routers", "gammas", "thresholds")
    names = {name for name in two_graphs.state_dict() if any(part in name for part in routing)}
    assert {name[:6] for name in names} == {"res3.0", "res5.0"}
    plain = narrow_backbone(*RESIDUAL, "MODEL.DGNET.EDGE_WEIGHTS", "none")
    two_graphs.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    expected = plain(x)
    for name, feature in two_graphs(x).items():  # γ is 0
        torch.testing.assert_close(feature, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ((*RESIDUAL, "MODEL.DGNET.STAGES", ["res6"]), r"STAGES \['res6'\]: choose from res2, res3"),
        ((*PAPER, "MODEL.DGNET.STAGES", ["res3"]), "in the paper wiring all stages are graphs"),
    ],
)
def test_stages_that_cannot_be(opts: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        narrow_backbone(*opts)


@pytest.mark.parametrize(
    ("wiring", "edge_weights"),
    [(PAPER, "dynamic"), (RESIDUAL, "dynamic"), (PAPER, "static"), (RESIDUAL, "none")],
)
def test_a_trace_follows_a_second_image(wiring: tuple[str, str], edge_weights: str) -> None:
    """The second image has another size and closes other edges than the traced one."""
    backbone = routed_backbone(*wiring, "MODEL.DGNET.EDGE_WEIGHTS", edge_weights)
    first, second = torch.randn(1, 3, 64, 64), torch.rand(1, 3, 96, 64) * 9
    with torch.no_grad():
        traced = torch.jit.trace(backbone, first, strict=False, check_trace=False)
        expected, got = backbone(second), traced(second)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


@WIRINGS
def test_autocast_stays_close_to_float32(wiring: tuple[str, str]) -> None:
    backbone = routed_backbone(*wiring)
    for graph in dynamic_graphs(backbone).values():
        nn.init.constant_(graph.thresholds, -1.0)  # no edge near the step
    x = torch.randn(2, 3, 64, 64)
    expected = backbone(x)["res5"]
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled), torch.autocast("cpu", dtype=torch.bfloat16):
            got = backbone(x)["res5"]
        error = (got.float() - expected).norm() / expected.norm()
        assert error < 0.05
    backbone.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backbone(x)["res5"].float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())


def edge_weights_of(backbone: DGNet, images: torch.Tensor) -> torch.Tensor:
    """α of all edges of all graphs, one after the other, [B, E]."""
    with torch.no_grad(), record_decisions(backbone) as latest:
        backbone(images)
    return torch.cat([weights.value[:, weights.learned] for weights in latest.values()], dim=1)


def test_half_precision_has_the_edge_weights_of_single_precision() -> None:
    """Of a feature map with more positions than float16 can count."""
    backbone = routed_backbone(*RESIDUAL, "MODEL.RESNETS.OUT_FEATURES", ["res2"])
    nn.init.constant_(dynamic_graphs(backbone)["res2.0"].thresholds, -1.0)
    image = torch.rand(1, 3, 1040, 1040)
    expected = edge_weights_of(backbone, image)
    got = edge_weights_of(backbone.half(), image.half())
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.01)


@WIRINGS
def test_edge_weights_are_the_same_alone_and_in_a_batch_with_a_larger_image(
    wiring: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = narrow_backbone(*wiring)
    for name, parameter in backbone.named_parameters():
        if ".gammas." in name:
            nn.init.normal_(parameter, std=0.3)
    image, larger = torch.randn(1, 3, 160, 224) + 1, torch.randn(1, 3, 288, 416)
    padded = nn.functional.pad(image, (0, 416 - 224, 0, 288 - 160))
    alone = edge_weights_of(backbone, image)
    in_batch = edge_weights_of(backbone, torch.cat([padded, larger]))[:1]
    torch.testing.assert_close(in_batch, edge_weights_of(backbone, padded))
    # What is left comes from the convolutions, which see the padding at the image's edge.
    difference = (in_batch - alone).abs().mean()
    assert difference < 0.01
    if wiring == PAPER:  # an average over the padding makes more of it
        monkeypatch.setattr(base, "valid_sizes", lambda _: torch.tensor([[288, 416]]))
        assert (edge_weights_of(backbone, padded) - alone).abs().mean() > 5 * difference


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN", "GN", ""])
def test_every_norm_builds_and_runs(norm: str) -> None:
    widths = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32)
    backbone = routed_backbone("MODEL.RESNETS.NORM", norm, *widths)
    assert torch.isfinite(backbone(torch.randn(1, 3, 64, 64))["res5"]).all()


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_builds_with_the_papers_number_of_edges(depth: int) -> None:
    blocks = {
        18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)
    }  # fmt: skip
    backbone = narrow_backbone("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.WIDTH_PER_GROUP", 2)
    for stage, n in zip(backbone.stages().values(), blocks[depth], strict=True):
        assert isinstance(stage, DynamicGraph)
        edges = sum(router.linear.out_features for router in stage.routers.values())
        assert edges == int(stage.edges.sum()) == (n + 2) * (n + 1) // 2
