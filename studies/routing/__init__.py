"""Does it help to choose branches for every image, or would leaving them out for all do as well?

Two experiments. *tree_crowns*: MobileNetV2 with torchvision's ImageNet weights becomes a Faster
R-CNN on the tiles of `make demo`, and may skip blocks. *cells*: a small network of cells learns
Fashion-MNIST from nothing, and has five branches to choose from. Of each: plain; routed, with the
branches chosen for every image, at a row of budgets; and, for each of these, pruned: the choice
that is the most frequent in the training images is made for all, and the network is trained anew,
as long.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from dgnet_det.export.pruning import count_branches
from dgnet_det.modeling.backbone.drnet import branch_name


class Run(NamedTuple):
    """One network and seed."""

    experiment: str
    arm: str  # plain, routed or pruned
    budget: float  # share of the multiply-adds; 1: none
    seed: int

    @property
    def name(self) -> str:
        budget = "" if self.arm == "plain" else f"-{self.budget:g}"
        return f"{self.experiment}/{self.arm}{budget}-seed{self.seed}"


def rarer_branches(model: nn.Module, batches: Iterable[Any]) -> list[str]:
    """All branches but the most frequent one of each connection, as ``MODEL.DRNET.PRUNED_BRANCHES``
    names them. Arguments are those of :func:`count_branches`."""
    connections: dict[tuple[str, int], dict[str, int]] = {}
    for (name, j, branch), count in count_branches(model, batches).items():
        connections.setdefault((name, j), {})[branch] = count
    return [
        branch_name(name, j, branch)
        for (name, j), counts in connections.items()
        for branch in counts
        if branch != max(counts, key=counts.__getitem__)
    ]
