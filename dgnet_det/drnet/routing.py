"""RouterNets and the selection of a branch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RouterNet(nn.Module):
    """Router of one connection: the logits of its branches, Linear(ReLU(Linear(GAP(x)))).

    The average's channels are brought to mean 0 and variance 1 first, without parameters: those of
    a trained network differ little between images beside their size. The last layer's weight starts
    at 0, so that all images choose alike; what its inputs are differs, so that they can part.
    """

    def __init__(self, channels: int, num_branches: int, *, preference: float) -> None:
        """
        Args:
            channels: of the connection's input.
            num_branches: K.
            preference: the first branch's logit at the start. The others' is 0.
        """
        super().__init__()
        hidden = max(channels // 16, 8)
        self.hidden = nn.Linear(channels, hidden)
        self.linear = nn.Linear(hidden, num_branches)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.linear.bias.data[0] = preference

    def forward(self, average: Tensor) -> Tensor:
        """
        Args:
            average: GAP of the connection's input, [B, C].

        Returns:
            Logits, [B, K], in the dtype of the parameters also under autocast.
        """
        with torch.autocast(average.device.type, enabled=False):
            average = F.layer_norm(average, (self.hidden.in_features,)).to(self.linear.weight.dtype)
            return self.linear(F.relu(self.hidden(average)))


def select(logits: Tensor, temperature: float | None) -> Tensor:
    """One branch per image, as one-hot rows.

    In training, Gumbel-Softmax with a straight-through selection: forward the branch of the largest
    l / T + g, backward the gradient of softmax(l / T + g), g ~ Gumbel(0, 1). The noise is not
    divided by T: the selection would be the same at every T, and at the end of training be as much
    of the noise as at its start. So T is how much the noise weighs, and with it the difference
    between training and inference goes to 0.

    Args:
        logits: l, [B, K].
        temperature: T; None for the branch of the largest logit, as at inference.

    Returns:
        [B, K], 0 and 1, differentiable where T is given.
    """
    if temperature is None:
        return _one_hot(logits)
    # The smallest number keeps the logarithm finite.
    exponential = torch.empty_like(logits).exponential_().clamp(min=torch.finfo(logits.dtype).tiny)
    soft = torch.softmax(logits / temperature - exponential.log(), dim=1)
    return _one_hot(soft) + (soft - soft.detach())


def _one_hot(scores: Tensor) -> Tensor:
    return F.one_hot(scores.argmax(dim=1), scores.shape[1]).to(scores.dtype)
