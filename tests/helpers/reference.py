"""Eqs. 3 to 5 written out edge by edge and sample by sample, in plain loops. Slow on purpose."""

from collections.abc import Callable

import torch
from torch import Tensor

from dgnet_det.graph.stage import DynamicGraph


def straight_through(alpha: Tensor, tau: Tensor) -> Tensor:
    """α·[α ≥ τ]; the step's derivative is replaced by 1, but for that of an open edge's α."""
    if alpha >= tau:
        return alpha + alpha.detach() * (tau.detach() - tau)
    distance = alpha - tau
    return alpha.detach() * (distance - distance.detach())


def reference_graph(graph: DynamicGraph, x: Tensor, valid: list[tuple[int, int]]) -> Tensor:
    """The output of a dynamic graph of float64 parameters on x [B, C, H, W], one sample at a time.

    Norms must be in evaluation mode, so that the samples are independent.
    """
    return torch.cat([_sample(graph, x[b : b + 1], *valid[b]) for b in range(x.shape[0])])


def _sample(graph: DynamicGraph, x: Tensor, height: int, width: int) -> Tensor:
    n = graph.num_nodes - 2
    if graph.has_shortcuts and graph.node(1).shortcut is not None:
        projected = graph.node(1).shortcut(x)
    else:
        projected = pooled(x, graph.stride) if graph.stride > 1 else x
        projected = projected if graph.projection is None else graph.projection(projected)
    outputs: list[Tensor | None] = [projected]
    edge: dict[tuple[int, int], Tensor | float] = {}
    raw: dict[tuple[int, int], Tensor] = {}

    def route(i: int, x_i: Tensor) -> None:
        if graph.has_shortcuts:
            edge[i, i + 1] = 1.0
        targets = range(i + 2 if graph.has_shortcuts else i + 1, n + 2)
        if not targets:
            return
        gap = x_i[0, :, :height, :width].mean(dim=(1, 2))
        if graph.has_shortcuts:  # normalised
            gap = (gap - gap.mean()) / (gap.var(unbiased=False) + 1e-5).sqrt()
        linear = graph.routers[str(i)].linear
        for k, j in enumerate(targets):
            alpha = torch.sigmoid((linear.weight[k] * gap).sum() + linear.bias[k])
            raw[i, j] = alpha
            opened = straight_through(alpha, graph.thresholds[i])
            edge[i, j] = opened * graph.gammas[str(i)][k] if graph.has_shortcuts else opened

    def gathered(j: int, inputs: list[Tensor | None]) -> tuple[Tensor, bool]:
        """The sum over present inputs, closed edges included as zeros; whether one is open."""
        there = [(edge[i, j], x_i) for i, x_i in enumerate(inputs) if x_i is not None]
        total = sum(e * x_i for e, x_i in there)
        return total, graph.has_shortcuts or any(float(e.detach()) != 0 for e, _ in there)

    route(0, projected)
    for j in range(1, n + 1):
        block = graph.node(j)
        total, is_open = gathered(j, [x] if j == 1 else outputs)
        if not is_open:
            outputs.append(None)
            continue
        x_j = branch(block, total if graph.has_shortcuts else activation(block)(total))
        if graph.has_shortcuts:
            x_j = activation(block)(x_j + block_skip(block, total))
        outputs.append(x_j)
        route(j, x_j)
    total, is_open = gathered(n + 1, outputs)
    if not is_open:
        there = [i for i in range(n + 1) if outputs[i] is not None]
        i = max(there, key=lambda i: float(raw[i, n + 1].detach()))
        total = total + raw[i, n + 1] * outputs[i]
    return total if graph.has_shortcuts else activation(graph.node(n))(total)


def pooled(x: Tensor, stride: int) -> Tensor:
    """The maximum over the 3x3 positions around every stride-th one, by slices."""
    height, width = x.shape[2:]
    padded = torch.full((*x.shape[:2], height + 2, width + 2), -torch.inf, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    shifted = [
        padded[:, :, r : r + height : stride, c : c + width : stride]
        for r in range(3)
        for c in range(3)
    ]
    return torch.stack(shifted).amax(dim=0)


def branch(block: torch.nn.Module, x: Tensor) -> Tensor:
    """The residual branch of a block."""
    if hasattr(block, "conv"):  # MobileNetV2
        return block.conv(x)
    for conv in (block.conv1, block.conv2, getattr(block, "conv3", None)):
        if conv is not None:
            x = conv(x if conv is block.conv1 else torch.relu(x))
    return x


def block_skip(block: torch.nn.Module, x: Tensor) -> Tensor | float:
    """The shortcut of a static block."""
    if block.shortcut is not None:
        return block.shortcut(x)
    return x if x.shape[1] == block.out_channels and block.stride == 1 else 0.0


def activation(block: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """The family's after-addition activation, not in place."""
    return lambda x: block.activation(x.clone())
