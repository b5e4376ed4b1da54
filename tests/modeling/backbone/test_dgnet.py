"""The backbone as Detectron2 uses it: features, freezing, memory, padding, tracing, autocast."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

import dgnet_det
from dgnet_det.graph.routing import averaging_weights, valid_sizes
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.modeling.backbone import DGNet, build_dgnet_backbone


def make_backbone(*opts: str | float, freeze_at: int = 0) -> DGNet:
    """A narrow DG-ResNet-18, FrozenBN, random routers, some edges closed, in evaluation mode."""
    cfg = dgnet_det.get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18,
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
            "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
            "MODEL.BACKBONE.FREEZE_AT", freeze_at, *opts,
        ]
    )  # fmt: skip
    backbone = build_dgnet_backbone(cfg, ShapeSpec(channels=3))
    for module in backbone.modules():
        if isinstance(module, DynamicGraph) and not module.plain:
            for parameter in module.routers.parameters():
                nn.init.normal_(parameter, std=1.0)
            nn.init.constant_(module.thresholds, 0.4)
            for gamma in getattr(module, "gammas", {}).values():
                nn.init.normal_(gamma, std=0.3)
    return backbone.eval()


@pytest.mark.parametrize("wiring", ["paper", "residual"])
@pytest.mark.parametrize("family", ["resnet", "mobilenetv2"])
def test_features_have_the_declared_shapes_at_any_size(family: str, wiring: str) -> None:
    opts = ("MODEL.DGNET.FAMILY", family, "MODEL.DGNET.WIRING", wiring)
    features_of = ["stem", "res3", "res4"]
    backbone = make_backbone(*opts, "MODEL.RESNETS.OUT_FEATURES", features_of)
    assert not hasattr(backbone, "res5")
    for height, width in ((64, 64), (37, 91)):
        features = backbone(torch.randn(2, 3, height, width))
        assert list(features) == features_of
        for name, spec in backbone.output_shape().items():
            size = (-(-height // spec.stride), -(-width // spec.stride))
            assert features[name].shape == (2, spec.channels, *size)


@pytest.mark.parametrize("wiring", ["paper", "residual"])
@pytest.mark.parametrize("freeze_routers", [False, True])
def test_freezing_spares_the_routers_unless_asked(wiring: str, freeze_routers: bool) -> None:
    opts = ("MODEL.DGNET.WIRING", wiring, "MODEL.DGNET.FREEZE_ROUTERS", freeze_routers)
    backbone = make_backbone(*opts, "MODEL.RESNETS.NORM", "BN", freeze_at=3)
    frozen = ("stem.", "res2.0.nodes.", "res3.0.nodes.")
    if wiring == "paper":
        frozen += ("res2.0.projection.", "res3.0.projection.")
    if freeze_routers:
        frozen += ("res2.", "res3.")
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    norms = {name: m for name, m in backbone.named_modules() if name.endswith(".norm")}
    for name, norm in norms.items():
        assert isinstance(norm, FrozenBatchNorm2d) == name.startswith(frozen), name
    sum(f.sum() for f in backbone.train()(torch.randn(2, 3, 64, 64)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_checkpointed_stages_give_the_same_gradients(wiring: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for on in (False, True):
        torch.manual_seed(0)
        backbone = make_backbone(
            "MODEL.DGNET.WIRING", wiring, "MODEL.DGNET.CHECKPOINT_STAGES", on
        ).train()
        backbone(x)["res5"].square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("edge_weights", ["dynamic", "static", "none"])
@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_a_trace_follows_a_second_image(wiring: str, edge_weights: str) -> None:
    """The second image has another size and closes other edges than the traced one."""
    backbone = make_backbone("MODEL.DGNET.WIRING", wiring, "MODEL.DGNET.EDGE_WEIGHTS", edge_weights)
    first, second = torch.randn(1, 3, 64, 64), torch.rand(1, 3, 96, 64) * 9
    with torch.no_grad():
        traced = torch.jit.trace(backbone, first, strict=False, check_trace=False)
        expected, got = backbone(second), traced(second)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_autocast_stays_close_to_float32(wiring: str) -> None:
    backbone = make_backbone("MODEL.DGNET.WIRING", wiring)
    for module in backbone.modules():
        if isinstance(module, DynamicGraph):
            nn.init.constant_(module.thresholds, -1.0)  # no edge near the step
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


def test_valid_sizes_are_the_unpadded_ones() -> None:
    images = torch.zeros(3, 3, 8, 10)
    images[0, :, :5, :7] = torch.randn(3, 5, 7)
    images[1] = torch.randn(3, 8, 10)
    images[2, 0, 0, 4] = 1.0
    images[1, :, 2:4] = 0.0  # zeros inside an image are no padding
    assert valid_sizes(images).tolist() == [[5, 7], [8, 10], [1, 5]]


def test_averaging_weights_average_the_valid_part() -> None:
    x = torch.randn(2, 4, 6, 5)
    valid = torch.tensor([[6, 5], [2, 3]])
    pool = averaging_weights(6, 5, valid, dtype=x.dtype)
    got = torch.bmm(x.flatten(2), pool[:, :, None])[:, :, 0]
    torch.testing.assert_close(got[0], x[0].mean(dim=(1, 2)))
    torch.testing.assert_close(got[1], x[1, :, :2, :3].mean(dim=(1, 2)))


@pytest.mark.parametrize("grad", [False, True])
def test_routers_leave_out_the_padding_of_a_batch(grad: bool) -> None:
    """Beside a larger image an image's α hardly changes; with pooling over the padding it would."""
    backbone = make_backbone("MODEL.DGNET.WIRING", "paper")
    image = torch.randn(1, 3, 64, 64) + 1.0
    batch = torch.zeros(2, 3, 128, 128)
    batch[0, :, :64, :64] = image[0]
    batch[1] = torch.randn(3, 128, 128)
    alphas: list[torch.Tensor] = []
    backbone.graphs("res2")[0].observer.register_forward_hook(
        lambda module, args, output: alphas.append(output.alpha[0])
    )
    with torch.set_grad_enabled(grad):
        backbone(image)
        backbone(batch)
    # What is left comes from the convolutions, which see the padding at the image's edge.
    torch.testing.assert_close(alphas[0], alphas[1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN", "GN", ""])
def test_every_norm_builds_and_runs(norm: str) -> None:
    widths = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32)
    backbone = make_backbone("MODEL.RESNETS.NORM", norm, *widths)
    assert torch.isfinite(backbone(torch.randn(1, 3, 64, 64))["res5"]).all()


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_builds_with_the_papers_number_of_edges(depth: int) -> None:
    blocks = {18: "2222", 34: "3463", 50: "3463", 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    cfg = dgnet_det.get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_dgnet_backbone", "MODEL.DEVICE", "cpu"])
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    backbone = build_backbone(cfg)
    for name, n in zip(backbone.stage_names, map(int, blocks), strict=True):
        (graph,) = backbone.graphs(name)
        edges = sum(router.linear.out_features for router in graph.routers.values())
        assert edges == (n + 2) * (n + 1) // 2


@pytest.mark.parametrize("family", ["resnet", "mobilenetv2"])
def test_behind_frozen_stages_every_router_gamma_and_threshold_moves(family: str) -> None:
    cfg = dgnet_det.get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.DEVICE", "cpu", "MODEL.DGNET.FAMILY", family,
            "MODEL.DGNET.WIRING", "residual", "MODEL.RESNETS.DEPTH", 18,
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
            "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
            "MODEL.BACKBONE.FREEZE_AT", 3,
        ]
    )  # fmt: skip
    backbone = build_dgnet_backbone(cfg, ShapeSpec(channels=3)).train()
    start = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.05)
    x = torch.randn(2, 3, 64, 64)
    for _ in range(3):
        optimizer.zero_grad()
        features = backbone(x).values()
        sum((f / (1 + f.detach().abs().mean()) - 1).square().mean() for f in features).backward()
        optimizer.step()
    for name, p in backbone.named_parameters():
        moved = p != start[name]
        if any(part in name for part in ("routers", "gammas", "thresholds")):
            edges = moved.any(dim=1) if moved.dim() == 2 else moved
            assert edges.all(), name
        if name.startswith(("stem.", "res2.0.nodes.", "res3.0.nodes.")):
            assert not moved.any(), name
