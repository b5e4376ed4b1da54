"""RouterNets, and the importance weights that they give to branches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RouterNet(nn.Module):
    """Router of a stage: the logits of all its branches, Linear(ReLU(Linear(GAP(x)))).

    The average's channels are brought to mean 0 and variance 1 first, without parameters: in a
    trained network they are large and differ little between images. The last layer's weight starts
    at 0, so that at first all images get the same logits; its gradient differs between images.
    """

    def __init__(
        self, channels: int, num_connections: int, num_branches: int, *, preference: float
    ) -> None:
        """
        Args:
            channels: of what is averaged.
            num_connections: C, those of the stage that have a choice.
            num_branches: K, of each.
            preference: the first branch's logit at the start. The others' is 0.
        """
        super().__init__()
        hidden = max(channels // 16, 16)
        self.shape = (num_connections, num_branches)
        self.hidden = nn.Linear(channels, hidden)
        self.linear = nn.Linear(hidden, num_connections * num_branches)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.linear.bias.data.view(self.shape)[:, 0] = preference

    def forward(self, average: Tensor) -> Tensor:
        """
        Args:
            average: GAP, [B, channels].

        Returns:
            Logits, [B, C, K], in the dtype of the parameters also under autocast.
        """
        with torch.autocast(average.device.type, enabled=False):
            average = F.layer_norm(average, (self.hidden.in_features,)).to(self.linear.weight.dtype)
            return self.linear(F.relu(self.hidden(average))).unflatten(1, self.shape)


def soften(logits: Tensor, temperature: float, noise: float) -> Tensor:
    """Gumbel-Softmax without a selection: softmax((l + s·g) / T), g ~ Gumbel(0, 1).

    Args:
        logits: l, [..., K].
        temperature: T.
        noise: s, the noise's share.
    """
    # The smallest number keeps the logarithm finite.
    exponential = torch.empty_like(logits).exponential_().clamp(min=torch.finfo(logits.dtype).tiny)
    return torch.softmax((logits - noise * exponential.log()) / temperature, dim=-1)


def bypass(logits: Tensor, temperature: float, threshold: float) -> Tensor:
    """w = softmax(l / T), then w ← 0 where w < θ and w ← w / Σ w, of logits l [..., K]. The largest
    weight stays in any case: from θ = 1/2 on it is alone."""
    logits = logits / temperature
    weights = torch.softmax(logits, dim=-1)
    limit: float | Tensor = threshold
    if threshold * logits.shape[-1] >= 1:
        limit = weights.amax(dim=-1, keepdim=True).clamp(max=threshold)
    return torch.softmax(logits.masked_fill(weights < limit, -torch.inf), dim=-1)
