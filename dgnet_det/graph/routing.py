"""Edge weights: the router (Eq. 4), the threshold (Eq. 5) and the adjacency matrix M."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Router(nn.Module):
    """Router of one node: α[b, :] = sigmoid(W · GAP(x)[b] + b), one weight per later node (Eq. 4).

    W starts as :class:`torch.nn.Linear` starts it, so that α varies with the image from the first
    step on: from W = 0 it hardly ever begins to.
    """

    def __init__(self, channels: int, num_edges: int, *, start: float, normalised: bool) -> None:
        """
        Args:
            channels: of the node's output.
            num_edges: number of edges out of the node.
            start: α at the start for an average of zeros, 0 < start < 1.
            normalised: whether the average's channels are brought to mean 0 and variance 1 first,
                without parameters. Not in Eq. 4.
        """
        super().__init__()
        self.linear = nn.Linear(channels, num_edges)
        self.normalised = normalised
        nn.init.constant_(self.linear.bias, _logit(start))

    def forward(self, average: Tensor) -> Tensor:
        """
        Args:
            average: GAP of the node's output, [B, C].

        Returns:
            α, [B, num_edges], in the dtype of the parameters also under autocast.
        """
        with torch.autocast(average.device.type, enabled=False):
            if self.normalised:
                average = F.layer_norm(average, (self.linear.in_features,))
            return torch.sigmoid(self.linear(average.to(self.linear.weight.dtype)))


class StaticRouter(nn.Module):
    """One learned α per edge, the same for every image: the ablation of Table 6."""

    def __init__(self, channels: int, num_edges: int, *, start: float, normalised: bool) -> None:
        """As :class:`Router`; only the number of edges and the start are looked at."""
        super().__init__()
        self.bias = nn.Parameter(torch.full((num_edges,), _logit(start)))

    def forward(self, average: Tensor) -> Tensor:
        """As :meth:`Router.forward`; the content of ``average`` is not looked at."""
        return torch.sigmoid(self.bias).expand(average.shape[0], -1)


def apply_threshold(alpha: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 5: α where α ≥ τ, else 0; and its gate, 1 or 0.

    The paper does not say how τ learns. Here the step also acts in training, and in the backward
    pass its derivative is 1 wherever α and τ can be (straight-through): so τ and the α of a closed
    edge always have a gradient. The α of an open edge has its true one. A steep sigmoid as the
    surrogate has none where training starts: at α = 0.98, τ = 0, sigmoid(10 (α - τ)) has slope
    0.0006.

    Args:
        alpha: [B, K].
        threshold: τ, a scalar tensor.

    Returns:
        α after Eq. 5 and the gate, [B, K] each. The gate's derivative in α is 1 for open edges too:
        a loss on the number of open edges is to close them.
    """
    gate = (alpha >= threshold).to(alpha.dtype)
    opened = alpha * gate
    if not torch.is_grad_enabled():
        return opened, gate
    step = alpha - threshold
    step = step - step.detach()  # 0, with the gradient of the step
    step_of_threshold = (threshold.detach() - threshold).expand_as(step)
    opened = opened + alpha.detach() * torch.where(gate.bool(), step_of_threshold, step)
    return opened, gate + step


class EdgeWeights(NamedTuple):
    """The edge weights of one forward pass of one graph. [B, N, N]: row j holds the edges into node
    j, column i those out of node i; 0 where there is no edge."""

    # 1 where Eq. 5 opens an edge, 0 where it is closed or its node absent. Differentiable.
    gate: Tensor
    # After Eq. 5: 0 where an edge is closed; 1 on the fixed chain of the residual wiring.
    alpha: Tensor
    # The factor in the gathered sum: α, and γ·α in the residual wiring.
    weight: Tensor
    # Which edges routers weigh, bool, [N, N].
    edges: Tensor
    # Whether the chain j-1 → j is fixed at 1 (residual wiring); its edges are none of routers'.
    fixed_chain: bool

    def absent(self) -> Tensor:
        """The blocks all of whose inputs are closed, bool, [B, N]."""
        absent = self.alpha.eq(0).all(dim=2)
        absent[:, 0] = absent[:, -1] = False
        return absent


class Adjacency:
    """The matrix M, [B, N, N], of one forward pass of one graph: node i writes its router's output
    into column i, node j reads its edges' weights from row j.

    Kept as columns, not written in place, so that autograd and tracing see plain tensors.
    """

    def __init__(self, *, can_close: bool) -> None:
        """``can_close``: whether Eq. 5 can close an edge at all."""
        self.can_close = can_close
        self._alpha: list[Tensor] = []  # before Eq. 5, [B, N] each; 0 where the node is absent
        self._gate: list[Tensor] = []
        self._weight: list[Tensor] = []
        self._reopened: dict[int, Tensor] = {}

    def write(self, alpha: Tensor, gate: Tensor, weight: Tensor) -> None:
        """Append the next node's column, [B, N] each: α before Eq. 5, the gate, the factor in the
        sum."""
        self._alpha.append(alpha)
        self._gate.append(gate)
        self._weight.append(weight)

    def row(self, j: int) -> Tensor:
        """The factors of the edges into node j from all earlier nodes, [B, j]."""
        return torch.stack([column[:, j] for column in self._weight], dim=1)

    def strongest(self, j: int, *, samples: int | None = None) -> Tensor:
        """The row of node j with nothing but α of its strongest edge, [B, j]: in every sample, or
        in as many ``samples`` as are given, those where it is strongest."""
        alpha = torch.stack([column[:, j] for column in self._alpha], dim=1)
        strongest = alpha * F.one_hot(alpha.argmax(dim=1), alpha.shape[1])
        if samples is None:
            return strongest
        chosen = strongest.amax(dim=1).topk(samples).indices
        return torch.zeros_like(strongest).index_copy(0, chosen, strongest[chosen])

    def reopen(self, j: int, row: Tensor) -> Tensor:
        """Have ``row`` [B, j] take the place of what was written for node j; returns it."""
        self._reopened[j] = row
        return row

    def edge_weights(self, edges: Tensor, *, fixed_chain: bool) -> EdgeWeights:
        """What the pass decided, for ``edges`` [N, N]."""
        last = torch.zeros_like(self._alpha[0])  # the output node has no edges
        gate, alpha, weight = (
            torch.stack([*columns, last], dim=2)
            for columns in (self._gate, self._alpha, self._weight)
        )
        alpha = alpha * gate
        if fixed_chain:
            alpha = alpha + torch.diag(alpha.new_ones(alpha.shape[1] - 1), -1)
        for j, row in self._reopened.items():
            row = F.pad(row, (0, alpha.shape[1] - row.shape[1]))[:, None]
            weight = alpha = torch.cat([weight[:, :j], row, weight[:, j + 1 :]], dim=1)
        return EdgeWeights(gate, alpha, weight, edges.to(alpha.device), fixed_chain)


def valid_sizes(images: Tensor) -> Tensor:
    """Height and width of each image of a batch without the zeros that Detectron2 pads it with, [B,
    2], int64.

    Detectron2's meta-architectures hand their backbone the padded batch alone, so the size is read
    off the batch: padding is 0 in every channel after normalisation, a row of pixels practically
    never.

    Args:
        images: [B, C, H, W], normalised, padded at the bottom and right.
    """
    filled = images.ne(0).any(dim=1)

    def extent(lines: Tensor) -> Tensor:
        positions = torch.arange(1, lines.shape[1] + 1, device=lines.device)
        return (lines * positions).amax(dim=1).clamp(min=1)

    return torch.stack([extent(filled.any(dim=2)), extent(filled.any(dim=1))], dim=1)


class ValidAverage:
    """GAP of Eq. 4: the average over the part of a feature map that is no padding, so that an
    image's edge weights do not depend on the images beside it."""

    def __init__(self, like: Tensor, valid: Tensor | None) -> None:
        """
        Args:
            like: a feature map of the size to average, [B, C, H, W].
            valid: [B, 2], height and width of its valid part, which starts at the top left; None
                for all of it.
        """
        height, width = like.shape[2:]
        if valid is None:
            valid = torch.tensor([[height, width]], device=like.device).expand(like.shape[0], 2)
        rows = torch.arange(height, device=like.device) < valid[:, :1]
        columns = torch.arange(width, device=like.device) < valid[:, 1:]
        # In float16 the number of positions overflows and their shares underflow.
        dtype = torch.promote_types(like.dtype, torch.float32)
        mask = (rows[:, :, None] & columns[:, None, :]).flatten(1).to(dtype)
        self.weights = mask / mask.sum(dim=1, keepdim=True)  # [B, H·W]

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C], float32 at least."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weights.dtype)
            return torch.bmm(x.flatten(2), self.weights[:, :, None]).squeeze(2)


def spread(values: Tensor, nodes: tuple[int, ...], num_nodes: int) -> Tensor:
    """A column of M, [B, N], with ``values`` [B, K] at K ``nodes`` in ascending order, 0
    elsewhere."""
    first, last = nodes[0], nodes[-1]
    if last - first + 1 == len(nodes):
        return F.pad(values, (first, num_nodes - 1 - last))
    index = torch.tensor(nodes, device=values.device)
    return values.new_zeros(len(values), num_nodes).index_copy(1, index, values)


def _logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability, dtype=torch.float64)))
