"""Eqs. 3 to 5 written out edge by edge and sample by sample, in plain loops. Slow on purpose."""

from collections.abc import Callable

import torch
from torch import Tensor

from dgnet_det.graph.routing import SURROGATE_SLOPE
from dgnet_det.graph.stage import DynamicGraph


def straight_through(alpha: Tensor, tau: Tensor) -> Tensor:
    """α·[α ≥ τ], the step's derivative replaced by that of sigmoid(SURROGATE_SLOPE·(α - τ))."""
    value = (alpha >= tau).double()
    z = SURROGATE_SLOPE * (alpha.detach() - tau.detach())
    slope = SURROGATE_SLOPE * torch.exp(-z.abs()) / (1 + torch.exp(-z.abs())) ** 2
    linear = slope * (alpha - tau)
    return alpha * (value + linear - linear.detach())


def reference_graph(graph: DynamicGraph, x: Tensor, valid: list[tuple[int, int]]) -> Tensor:
    """The output of a dynamic graph of float64 parameters on x [B, C, H, W], one sample at a time.

    Norms must be in evaluation mode, so that the samples are independent.
    """
    return torch.cat([_sample(graph, x[b : b + 1], *valid[b]) for b in range(x.shape[0])])


def _sample(graph: DynamicGraph, x: Tensor, height: int, width: int) -> Tensor:
    n = graph.num_nodes - 2
    if graph.projection is not None:
        projected = graph.projection(x)
    elif graph.residual and graph.node(1).shortcut is not None:
        projected = graph.node(1).shortcut(x)
    else:
        projected = x
    outputs: list[Tensor | None] = [projected]
    edge: dict[tuple[int, int], Tensor | float] = {}
    raw: dict[tuple[int, int], Tensor] = {}

    def route(i: int, x_i: Tensor) -> None:
        if graph.residual:
            edge[i, i + 1] = 1.0
        targets = range(i + 2 if graph.residual else i + 1, n + 2)
        if not targets:
            return
        gap = x_i[0, :, :height, :width].mean(dim=(1, 2))
        linear = graph.routers[str(i)].linear
        for k, j in enumerate(targets):
            alpha = torch.sigmoid((linear.weight[k] * gap).sum() + linear.bias[k])
            raw[i, j] = alpha
            opened = straight_through(alpha, graph.thresholds[i])
            edge[i, j] = opened * graph.gammas[str(i)][k] if graph.residual else opened

    def gathered(j: int, inputs: list[Tensor | None]) -> tuple[Tensor, bool]:
        """The sum over present inputs, closed edges included as zeros; whether one is open."""
        there = [(edge[i, j], x_i) for i, x_i in enumerate(inputs) if x_i is not None]
        total = sum(e * x_i for e, x_i in there)
        return total, graph.residual or any(float(e.detach()) != 0 for e, _ in there)

    route(0, projected)
    for j in range(1, n + 1):
        block = graph.node(j)
        total, is_open = gathered(j, [x] if j == 1 else outputs)
        if not is_open:
            outputs.append(None)
            continue
        if graph.residual:
            skip = block_skip(block, total)
            x_j = activation(block)(block.branch(total) + skip)
        else:
            x_j = block.branch(activation(block)(total))
        outputs.append(x_j)
        route(j, x_j)
    total, is_open = gathered(n + 1, outputs)
    if not is_open:
        there = [i for i in range(n + 1) if outputs[i] is not None]
        i = max(there, key=lambda i: float(raw[i, n + 1].detach()))
        total = total + raw[i, n + 1] * outputs[i]
    return total if graph.residual else activation(graph.node(n))(total)


def block_skip(block: torch.nn.Module, x: Tensor) -> Tensor | float:
    """The shortcut of a static block."""
    if block.shortcut is not None:
        return block.shortcut(x)
    if hasattr(block, "use_res_connect") and not block.use_res_connect:
        return 0.0
    return x


def activation(block: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """The family's after-addition activation, not in place."""
    return lambda x: block.activation(x.clone())
