"""What a module has, and what its operators do."""

import copy
from math import prod
from typing import Any, NamedTuple

import torch
from fvcore.nn import parameter_count
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

_CONVOLUTION = torch.ops.aten.convolution
_MATRIX_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)


class Counts(NamedTuple):
    """What a module has, and what its operators did."""

    params: int  # elements of its parameters
    conv_macs: int  # multiply-adds of the convolutions alone, as in the paper's Table 1
    # Multiply-adds of convolutions, linear layers and matrix products, and of the weighted sums one
    # per element and weighted edge. All else counts as none.
    macs: int
    activations: int  # elements of the outputs of convolutions, linear layers, matrix products

    def plus_macs(self, macs: int) -> "Counts":
        """With ``macs`` more of them."""
        return self._replace(macs=self.macs + macs)


NOTHING = Counts(0, 0, 0, 0)  # of what only pools or passes on, and has no parameters


def operator_counts(model: nn.Module, inputs: Any) -> dict[str, Counts]:
    """Count each of the modules of ``model`` that compute something on ``inputs``, by name."""

    def output_size(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return prod(out_shape)

    outputs = FlopCounterMode(
        display=False,
        custom_mapping={op: output_size for op in (_CONVOLUTION, *_MATRIX_PRODUCTS)},
    )
    with outputs, FlopCounterMode(display=False) as flops:
        model(inputs)
    activations, params = outputs.get_flop_counts(), parameter_count(model)
    counts = {}
    for module, by_operator in flops.get_flop_counts().items():
        name = module.partition(".")[2]  # after that of the model's class
        counts[name] = Counts(
            params=params[name],
            conv_macs=by_operator.get(_CONVOLUTION, 0) // 2,
            macs=sum(by_operator.values()) // 2,
            activations=sum(activations[module].values()),
        )
    return counts


def symbolic_counts(module: nn.Module, channels: int, size: tuple[int, int]) -> dict[str, Counts]:
    """As :func:`operator_counts`, in evaluation mode on one image of ``size``, height and width.
    Shapes alone are propagated, so any size takes the same short time."""
    if module.training:  # a copy, since its norms would count what passes
        module = copy.deepcopy(module).eval()
    device = next((parameter.device for parameter in module.parameters()), None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return operator_counts(module, torch.empty(1, channels, *size, device=device))
