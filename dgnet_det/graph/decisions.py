"""What a stage decided in a forward pass, for whoever listens."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


class Decisions(NamedTuple):
    """What one stage decided for the B images of one forward pass, differentiable, [B, R, K].

    Of a graph with N nodes R = K = N: row j holds the edges into node j, column i those out of node
    i. Of a routed stage R is the number of connections that have a choice, K that of branches.
    Entries that do not exist are 0.
    """

    gate: Tensor  # 1 where an edge is open or a branch runs, 0 where not
    value: Tensor  # α after Eq. 5 of an edge, the importance weight of a branch
    weight: Tensor  # the factor in the sum; of edges γ·α in the residual wiring, 1 on its chain
    learned: Tensor  # the entries that a router decides, bool, [R, K]
    rows: tuple[str, ...]  # names: of nodes, or of connections
    columns: tuple[str, ...]  # names: of nodes, or of branches

    def detached(self) -> "Decisions":
        """Without gradients."""
        gate, value, weight = self.gate.detach(), self.value.detach(), self.weight.detach()
        return self._replace(gate=gate, value=value, weight=weight)

    def absent(self) -> Tensor:
        """The blocks of a graph all of whose inputs are closed, bool, [B, N]."""
        absent = self.weight.eq(0).all(dim=2) & self.learned.any(dim=1)
        absent[:, -1] = False  # the output keeps an input
        return absent


class DecisionPoint(nn.Module):
    """Passes on how to make the :class:`Decisions` of a forward pass: a forward hook on this module
    gets a function that makes them, so that nothing is made where nobody listens."""

    def forward(self, make: Callable[[], Decisions]) -> Callable[[], Decisions]:
        """Return ``make``."""
        return make
