"""Edge weights: the router (Eq. 4), the threshold (Eq. 5) and the adjacency buffer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Steepness of the sigmoid that stands for Eq. 5's step in the backward pass. At α - τ = 0.5, where
# training starts, its slope is 0.07: small beside α's own gradient, large enough that τ moves.
SURROGATE_SLOPE = 10.0


class Router(nn.Module):
    """Router of one node: α[b, :] = sigmoid(W · GAP(x)[b] + b), one weight per later node (Eq. 4).

    Starts at W = 0, b = 0, that is at α = 0.5 for every edge and image.
    """

    def __init__(self, channels: int, num_edges: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_edges)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, average: Tensor) -> Tensor:
        """
        Args:
            average: GAP of the node's output, [B, C].

        Returns:
            α, [B, num_edges], in the dtype of the parameters also under autocast.
        """
        with torch.autocast(average.device.type, enabled=False):
            return torch.sigmoid(self.linear(average.to(self.linear.weight.dtype)))


class StaticRouter(nn.Module):
    """One learned α per edge, the same for every image: the ablation of Table 6. Starts at α =
    0.5."""

    def __init__(self, channels: int, num_edges: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_edges))

    def forward(self, average: Tensor) -> Tensor:
        """As :meth:`Router.forward`; the content of ``average`` is not looked at."""
        return torch.sigmoid(self.bias).expand(average.shape[0], -1)


def threshold_gate(alpha: Tensor, threshold: Tensor) -> Tensor:
    """Eq. 5's step: 1 where α ≥ τ, else 0. ``alpha`` [B, K], ``threshold`` a scalar tensor; returns
    [B, K].

    The paper does not say how τ learns. Here the step also acts in training, and its backward pass
    is that of sigmoid(SURROGATE_SLOPE · (α - τ)) (straight-through), so that τ and the α of closed
    edges have gradients.
    """
    step = (alpha >= threshold).to(alpha.dtype)
    if not torch.is_grad_enabled():
        return step
    surrogate = torch.sigmoid(SURROGATE_SLOPE * (alpha - threshold))
    return step + (surrogate - surrogate.detach())


class AdjacencyBuffer:
    """The matrix M [B, N, N] of one stage: node i writes its edges into column i, node j reads its
    own from row j.

    Kept as the columns' entries for edges that exist, not written in place, so that autograd and
    tracing see plain tensors.
    """

    def __init__(self, targets: Sequence[Sequence[int]]) -> None:
        """
        Args:
            targets: for every node, the later nodes that it feeds, in order.
        """
        self.targets = targets
        self.columns: list[Tensor] = []

    def write(self, column: Tensor) -> None:
        """Append the next node's column: the weights of its edges, [B, number of its targets]."""
        self.columns.append(column)

    def read(self, j: int) -> Tensor:
        """Row j: the weights of the k edges into node j, by the node that they come from, [B,
        k]."""
        entries = [
            column[:, targets.index(j)]
            for column, targets in zip(self.columns, self.targets, strict=False)
            if j in targets
        ]
        return torch.stack(entries, dim=1)

    def matrix(self) -> Tensor:
        """M, [B, N, N], 0 where there is no edge."""
        size = len(self.targets)
        columns = [
            spread(*entries, size) for entries in zip(self.columns, self.targets[:-1], strict=True)
        ]
        return torch.stack([*columns, torch.zeros_like(columns[0])], dim=2)


def spread(values: Tensor, places: Sequence[int], size: int) -> Tensor:
    """A tensor [B, size] with ``values`` [B, k] at k ``places`` in ascending order, 0 elsewhere."""
    if isinstance(places, range):
        return F.pad(values, (places.start, size - places.stop))
    index = torch.tensor(places, dtype=torch.long, device=values.device)
    return values.new_zeros(len(values), size).index_copy(1, index, values)


def averaging_weights(height: int, width: int, valid: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Weights under which a sum over positions is the average over the part of a feature map that
    is no padding.

    Args:
        height, width: size of the feature map.
        valid: [B, 2], height and width of its valid part, which starts at the top left.
        dtype: of the result, float32 at least: in float16 the number of positions overflows.

    Returns:
        [B, height · width], each sample's sums to 1.
    """
    rows = torch.arange(height, device=valid.device) < valid[:, :1]
    columns = torch.arange(width, device=valid.device) < valid[:, 1:]
    mask = (rows[:, :, None] & columns[:, None, :]).flatten(1).to(dtype)
    return mask / mask.sum(dim=1, keepdim=True)


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
