"""Folded norms against the norms themselves, and against float64."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from torch import nn

from dgnet_det.config import load_cfg
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.folding import FoldingConv2d, fold_in_flight, optimize_for_inference
from dgnet_det.modeling.observation import dynamic_graphs

NETWORKS = [
    "DG_R_18_FPN_1x",
    "DG_R_50_residual_FPN_1x",
    "DG_X_50_32x4d_FPN_1x",
    "DG_MobileNetV2_residual_FPN_1x",
    "DG_RegNetX_600M_FPN_1x",
    "R_50_FPN_1x",
]


def randomise_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)


def make_conv(groups: int, activation: object = None) -> Conv2d:
    norm = get_norm("FrozenBN", 6)
    conv = Conv2d(
        4, 6, 3, stride=2, padding=1, groups=groups, bias=False, norm=norm, activation=activation
    )
    randomise_norms(conv)
    return conv


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("activation", [None, torch.relu])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_folding_conv_equals_conv_and_norm_in_float64(
    groups: int, activation: object, memory_format: torch.memory_format
) -> None:
    conv = make_conv(groups, activation).double()
    folding = copy.deepcopy(conv)
    fold_in_flight(folding)
    assert type(folding) is FoldingConv2d
    assert list(folding.state_dict()) == list(conv.state_dict())
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64).to(memory_format=memory_format)
    results = []
    for module in (conv, folding):
        x_ = x.clone().requires_grad_()
        y = module(x_)
        y.backward(torch.ones_like(y).cumsum(3))
        assert x_.grad is not None
        with torch.no_grad():
            torch.testing.assert_close(module(x), y)
        results.append((y, x_.grad, module.weight.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_folding_conv_gradcheck() -> None:
    conv = make_conv(1).double()
    fold_in_flight(conv)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def f(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(f, (x, conv.weight))


def test_folding_conv_under_autocast_has_float32_gradients() -> None:
    conv = make_conv(1)
    fold_in_flight(conv)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is not None
    assert x.grad.dtype == conv.weight.grad.dtype == torch.float32
    reference = copy.deepcopy(conv)
    reference.zero_grad()
    reference(x).square().sum().backward()
    torch.testing.assert_close(conv.weight.grad, reference.weight.grad, rtol=0.1, atol=0.5)


def test_a_frozen_layer_still_passes_gradients_on() -> None:
    conv = make_conv(1)
    fold_in_flight(conv)
    conv.weight.requires_grad_(False)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert conv.weight.grad is None


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_optimized_backbone_equals_the_original(name: str, norm: str) -> None:
    torch.manual_seed(0)
    opts = ["MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", norm]
    cfg = load_cfg(f"configs/COCO-Detection/faster_rcnn_{name}.yaml", opts)
    model = build_model(cfg).backbone.bottom_up.eval()
    randomise_norms(model)
    for graph in dynamic_graphs(model).values():
        for parameter in graph.routers.parameters():
            parameter.data.normal_(std=0.1)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        optimized = optimize_for_inference(model)
        assert not any(
            isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d)) for m in optimized.modules()
        )
        got = optimized(images)
    for level, want in expected.items():
        scale = want.abs().max().item()
        torch.testing.assert_close(got[level], want, rtol=1e-4, atol=1e-4 * scale)
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
