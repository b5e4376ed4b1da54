"""Norms of fixed statistics folded into the convolutions before them."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.regnet import BottleneckTransform, ResBottleneckBlock, SimpleStem
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

from dgnet_det.graph.prepared import prepare
from dgnet_det.graph.stage import DynamicGraph

NORMS = (_BatchNorm, FrozenBatchNorm2d)
# Modules whose neighbouring children follow each other in the forward pass.
CHAINS = (nn.Sequential, SimpleStem, BottleneckTransform, ResBottleneckBlock)


class FoldingConv2d(Conv2d):
    """Detectron2's :class:`Conv2d` that scales its weights, not its output, by a
    :class:`FrozenBatchNorm2d`: two passes over the output less, in training as at inference.

    Parameters, buffers and their names are those of :class:`Conv2d`; results differ by rounding.
    """

    def __init__(self, conv: Conv2d) -> None:
        """All that ``conv`` has, which is not to be used any more."""
        self.__dict__.update(conv.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        """As :class:`Conv2d`."""
        if not isinstance(self.norm, FrozenBatchNorm2d) or self.bias is not None:
            return super().forward(x)
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        weight = self.weight * scale[:, None, None, None]
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)


def fold_frozen_norms(model: nn.Module) -> None:
    """Put a :class:`FoldingConv2d` in the place of every Detectron2 :class:`Conv2d` of ``model``
    that has a frozen norm. Parameters stay the same objects."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is Conv2d and isinstance(child.norm, FrozenBatchNorm2d):
                setattr(module, name, FoldingConv2d(child))


@torch.no_grad()
def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Fold the norms of a model into its convolutions for good, in place, set it to evaluation
    mode, and lay it out channels-last on a CPU.

    For inference alone, and after the weights are loaded: the model no longer has the names of a
    checkpoint, nor can it be trained. Its outputs change by rounding. What forward hooks inside a
    graph get to see is overwritten later (:func:`.prepared.prepare`); outputs are not.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, DynamicGraph):
            prepare(module)
    for parent, name, conv, norm in list(_convolutions_with_norm(model)):
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        setattr(parent, name, None if parent is conv else nn.Identity().eval())
    if not any(parameter.is_cuda for parameter in model.parameters()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.requires_grad_(False)


def _convolutions_with_norm(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Conv2d, Any]]:
    """Every norm that follows a convolution and nothing else does: the norm's parent, its name
    there, convolution, norm."""
    found: list[tuple[nn.Module, str, nn.Conv2d, Any]] = []
    for module in model.modules():
        if isinstance(module, Conv2d) and isinstance(module.norm, NORMS):
            found.append((module, "norm", module, module.norm))
        elif isinstance(module, CHAINS):
            for (_, conv), (name, norm) in pairwise(module.named_children()):
                bare = isinstance(conv, nn.Conv2d) and getattr(conv, "activation", None) is None
                if bare and isinstance(norm, NORMS):
                    found.append((module, name, conv, norm))
    uses = Counter(conv for _, _, conv, _ in found)
    yield from (one for one in found if uses[one[2]] == 1)
