"""Folded norms against the norms themselves, and against float64."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from helpers.narrow import narrow_backbone
from helpers.static_networks import randomised
from torch import nn

from dgnet_det.modeling.folding import FoldingConv2d, fold_frozen_norms, optimize_for_inference

RESIDUAL = ("MODEL.DGNET.WIRING", "residual")
NETWORKS = {
    "basic": (),
    "bottleneck": (*RESIDUAL, "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    "groups": (
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.NUM_GROUPS", 4),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 2),
    ),
    "mobilenetv2": (*RESIDUAL, "MODEL.DGNET.FAMILY", "mobilenetv2"),
    "regnet": ("MODEL.DGNET.FAMILY", "regnet", "MODEL.DGNET.REGNET", "Y_400M"),
}


def make_conv(groups: int, activation: object = None) -> Conv2d:
    norm = get_norm("FrozenBN", 6)
    conv = Conv2d(
        4, 6, 3, stride=2, padding=1, groups=groups, bias=False, norm=norm, activation=activation
    )
    randomised(conv)
    return conv


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("activation", [None, torch.relu])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_folding_conv_equals_conv_and_norm_in_float64(
    groups: int, activation: object, memory_format: torch.memory_format
) -> None:
    conv = make_conv(groups, activation).double()
    folding = FoldingConv2d(copy.deepcopy(conv))
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
    conv = FoldingConv2d(make_conv(1)).double()
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def f(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(f, (x, conv.weight))


def test_folding_conv_under_autocast_has_float32_gradients() -> None:
    conv = FoldingConv2d(make_conv(1))
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
    conv = FoldingConv2d(make_conv(1))
    conv.weight.requires_grad_(False)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert conv.weight.grad is None


def test_frozen_norms_alone_are_folded() -> None:
    model = nn.ModuleDict({"frozen": make_conv(1), "plain": Conv2d(4, 6, 3)})
    model["batch"] = Conv2d(4, 6, 3, bias=False, norm=get_norm("BN", 6))
    names = list(model.state_dict())
    fold_frozen_norms(model)
    assert [type(module) for module in model.values()] == [FoldingConv2d, Conv2d, Conv2d]
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_optimized_backbone_equals_the_original(name: str, norm: str) -> None:
    model = narrow_backbone("MODEL.RESNETS.NORM", norm, *NETWORKS[name])
    randomised(model)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        optimized = optimize_for_inference(model)
        norms = (nn.BatchNorm2d, FrozenBatchNorm2d)
        assert not any(isinstance(module, norms) for module in optimized.modules())
        got = optimized(images)
    for level, want in expected.items():
        scale = want.abs().max().item()
        torch.testing.assert_close(got[level], want, rtol=1e-4, atol=1e-4 * scale)
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
