"""Edge weights: pooling and router (Eq. 4), the threshold (Eq. 5) and the adjacency matrix M."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_det.graph.aggregation import is_recording, weighted_sum
from dgnet_det.graph.decisions import Decisions

# α of every edge at the start, for an average of zeros. The sigmoid is steepest at 0.5; at 0.98 it
# is so flat that routers hardly learn (docs/study.md).
ROUTER_START = 0.5


class Router(nn.Module):
    """Router of one node: α[b, :] = sigmoid(W · GAP(x)[b] + b), one weight per later node (Eq. 4).

    W starts as :class:`torch.nn.Linear` starts it, so that α varies with the image from the first
    step on.
    """

    def __init__(self, channels: int, num_edges: int, *, normalised: bool) -> None:
        """
        Args:
            channels: of the node's output.
            num_edges: number of edges out of the node.
            normalised: whether to bring the average's channels to mean 0 and variance 1 first,
                without parameters. Not in Eq. 4.
        """
        super().__init__()
        self.linear = nn.Linear(channels, num_edges)
        self.normalised = normalised
        nn.init.constant_(self.linear.bias, _logit(ROUTER_START))

    def forward(self, average: Tensor) -> Tensor:
        """
        Args:
            average: GAP of the node's output, [B, C].

        Returns:
            α, [B, num_edges], in the dtype of the parameters, under autocast too.
        """
        with torch.autocast(average.device.type, enabled=False):
            if self.normalised:
                average = F.layer_norm(average, (self.linear.in_features,))
            return torch.sigmoid(self.linear(average.to(self.linear.weight.dtype)))


class StaticRouter(nn.Module):
    """One learned α per edge, the same for every image: the ablation of Table 6."""

    def __init__(self, channels: int, num_edges: int, *, normalised: bool) -> None:
        """Takes the arguments of :class:`Router`; only ``num_edges`` matters."""
        super().__init__()
        self.bias = nn.Parameter(torch.full((num_edges,), _logit(ROUTER_START)))

    def forward(self, average: Tensor) -> Tensor:
        """α, [B, num_edges]; ``average``, [B, C], gives the batch size alone."""
        return torch.sigmoid(self.bias).expand(average.shape[0], -1)


def apply_threshold(alpha: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Apply Eq. 5: α where α ≥ τ, else 0. Returns that and the gate, 1 or 0.

    The paper does not say how τ learns. Here the step also acts in training, and in the backward
    pass its derivative is 1 everywhere (straight-through), so that τ and the α of a closed edge
    always have a gradient. The α of an open edge has its true one. A steep sigmoid as the surrogate
    would have no slope where training starts.

    Args:
        alpha: [B, …].
        threshold: τ, of a shape that broadcasts to ``alpha``.

    Returns:
        α after Eq. 5 and the gate, both of the shape of ``alpha``. The gate's derivative in α is 1
        for open edges too, so that a loss on the number of open edges can close them.
    """
    gate = (alpha >= threshold).to(alpha.dtype)
    opened = alpha * gate
    if not torch.is_grad_enabled():
        return opened, gate
    threshold = threshold.clamp(-1e6, 1e6)  # ∞ - ∞ would be no number
    step_of_alpha = alpha - alpha.detach()  # 0, with the gradient of the step
    step_of_threshold = (threshold.detach() - threshold).expand_as(alpha)
    step = step_of_alpha + step_of_threshold
    opened = opened + alpha.detach() * torch.where(gate.bool(), step_of_threshold, step)
    return opened, gate + step


class Adjacency:
    """The matrix M, [B, N, N], of one forward pass of one graph: node i writes column i, node j
    reads row j. It holds the factors in the gathered sums."""

    columns: Tensor  # [B, N, number of columns written]

    def __init__(
        self, num_nodes: int, projected: Tensor, valid: Tensor | None, *, can_close: bool
    ) -> None:
        """
        Args:
            num_nodes: N.
            projected: a feature map of the size of the nodes' outputs, [B, C, H, W].
            valid: as for :func:`position_weights`.
            can_close: whether Eq. 5 can close an edge at all.
        """
        self.num_nodes = num_nodes
        self.can_close = can_close
        self.positions = position_weights(projected, valid)
        self.alphas: list[Tensor] = []  # of each node, before Eq. 5; 0 where it is absent
        self.reopened: dict[int, Tensor] = {}
        self.absent: set[int] = set()  # the nodes that are absent in every sample

    def average(self, x: Tensor) -> Tensor:
        """GAP of Eq. 4, [B, C, H, W] → [B, C], over the part that is no padding, so that an image's
        edge weights do not depend on the images beside it."""
        return average(x, self.positions)

    def write(self, alpha: Tensor, weight: Tensor) -> None:
        """Append the next node's column: α before Eq. 5 and the factors in the sums, [B, K] each,
        for its edges to the last K nodes."""
        column = F.pad(weight, (self.num_nodes - weight.shape[1], 0))[:, :, None]
        self.columns = torch.cat([self.columns, column], dim=2) if self.alphas else column
        self.alphas.append(alpha)

    def row(self, j: int) -> Tensor:
        """The factors of the edges into node j from all nodes before it, [B, j]."""
        return self.reopened[j] if j in self.reopened else self.columns[:, j]

    def gather(self, j: int, nodes: Sequence[Tensor]) -> Tensor:
        """The sum in Eq. 3, Σ_{i<j} M[b, j, i] · x_i, of the outputs of the nodes before node j."""
        return weighted_sum(nodes, self.row(j))

    def strongest(self, j: int, *, samples: int | None = None) -> Tensor:
        """α of the strongest edge into node j and 0 for the others, [B, j]; with ``samples``, only
        in that many samples, those where it is strongest."""
        alpha = torch.stack([a[:, j - self.num_nodes] for a in self.alphas], dim=1)
        strongest = alpha * F.one_hot(alpha.argmax(dim=1), alpha.shape[1])
        if samples is None:
            return strongest
        chosen = strongest.amax(dim=1).topk(samples).indices
        return torch.zeros_like(strongest).index_copy(0, chosen, strongest[chosen])

    def decisions(self, thresholds: Tensor, learned: Tensor) -> Decisions:
        """What the pass decided.

        Args:
            thresholds: τ of the nodes that have a router, the first ones.
            learned: the edges that routers weigh, bool, [N, N].
        """
        n = self.num_nodes
        alpha = torch.stack([F.pad(a, (n - a.shape[1], 0)) for a in self.alphas], dim=2)
        alpha, weight = (F.pad(x, (0, 1)) for x in (alpha, self.columns))
        learned = learned.to(alpha.device)
        value, gate = apply_threshold(alpha, F.pad(thresholds, (0, n - len(thresholds))))
        gate = gate * (learned & alpha.ne(0))
        for j, row in self.reopened.items():
            row = F.pad(row, (0, n - row.shape[1]))[:, None]
            weight = value = torch.cat([weight[:, :j], row, weight[:, j + 1 :]], dim=1)
        nodes = ("in", *map(str, range(1, n - 1)), "out")
        return Decisions(gate, value, weight, learned, nodes, nodes)


def valid_sizes(images: Tensor) -> Tensor | None:
    """Find the height and width of each image of a batch without padding, [B, 2], int64; None
    where no image is padded, which is looked for on a CPU alone: elsewhere the host would wait.

    Detectron2's meta-architectures hand their backbone the padded batch alone, so the size is read
    off the batch: padding is 0 in every channel after normalisation, a whole row or column of
    pixels at the edge practically never.

    Args:
        images: [B, C, H, W], normalised, padded with zeros at the bottom and right.
    """
    if images.device.type == "cpu" and not is_recording(images):
        ends = images[:, :, -1].ne(0).any(dim=(1, 2)), images[:, :, :, -1].ne(0).any(dim=(1, 2))
        if all((ends[0] & ends[1]).tolist()):
            return None
    brightest = images.abs().amax(dim=1)
    sizes = []
    for dim in (2, 1):
        lines = brightest.amax(dim=dim).ne(0)
        positions = torch.arange(1, lines.shape[1] + 1, device=lines.device)
        sizes.append((lines * positions).amax(dim=1))
    return torch.stack(sizes, dim=1).clamp_(min=1)


def position_weights(like: Tensor, valid: Tensor | None) -> Tensor:
    """The weight of each position in an average over the valid part of a feature map, [B, H·W, 1],
    float32 at least: in float16 the number of positions would overflow.

    Args:
        like: a feature map of the size to average, [B, C, H, W].
        valid: [B, 2], height and width of its valid part, which starts at the top left; None for
            all of it.
    """
    batch, _, height, width = like.shape
    dtype = torch.promote_types(like.dtype, torch.float32)
    if valid is None:
        return torch.full(
            (batch, height * width, 1), 1 / (height * width), dtype=dtype, device=like.device
        )
    rows = torch.arange(height, device=like.device) < valid[:, :1]
    columns = torch.arange(width, device=like.device) < valid[:, 1:]
    mask = (rows[:, :, None] & columns[:, None]).flatten(1)[:, :, None]
    return mask / mask.sum(dim=1, keepdim=True).to(dtype)


def average(x: Tensor, weights: Tensor) -> Tensor:
    """GAP of Eq. 4 over the part that is no padding, so that an image's edge weights do not depend
    on the images beside it: [B, C, H, W] and :func:`position_weights` → [B, C]."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.bmm(x.to(weights.dtype).flatten(2), weights).squeeze(2)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
