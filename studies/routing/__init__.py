"""Does it help to choose branches for every image, or would leaving them out for all do as well?

*copies*, *long_copies* and *skip*: a narrow ResNet-18 learns eight domains of Fashion-MNIST from
nothing, and weighs four copies of every block, or may skip blocks. *cells*: so does a network of
cells. *tree_crowns*: MobileNetV2 with torchvision's ImageNet weights becomes a Faster R-CNN on the
tiles of `make demo`, and may skip blocks. Of each: plain; routed; and pruned at a budget below 1:
the choice that is the most frequent is made for all images, and the network is trained anew, as
long.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dgnet_det.modeling.backbone.drnet import branch_name
from dgnet_det.modeling.observation import record_decisions, routed_stages


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


@torch.no_grad()
def count_branches(model: nn.Module, batches: Iterable[Any]) -> dict[tuple[str, int, str], int]:
    """How many of the images in ``batches``, each as the model takes it, take a branch, by stage,
    connection and name, of the connections that have a choice. The model is in evaluation mode."""
    counts: dict[str, Tensor] = {}
    with record_decisions(model) as choices:
        for batch in batches:
            model(batch)
            for name, of_stage in choices.items():
                counts[name] = counts.get(name, 0) + of_stage.gate.sum(dim=0)
    stages = routed_stages(model)
    return {
        (name, j, branch): int(row[stages[name].columns.index(branch)])
        for name, rows in counts.items()
        for j, row in zip(stages[name].connections, rows, strict=True)
        for branch in stages[name].branches[j]
    }


def rarer_branches(model: nn.Module, batches: Iterable[Any]) -> list[str]:
    """All branches but the most frequent one of each connection, as ``MODEL.DRNET.PRUNED_BRANCHES``
    names them. Arguments are those of :func:`count_branches`."""
    connections: dict[tuple[str, int], dict[str, int]] = {}
    for (name, j, branch), count in count_branches(model, batches).items():
        connections.setdefault((name, j), {})[branch] = count
    return [
        branch_name(name, str(j), branch)
        for (name, j), counts in connections.items()
        for branch in counts
        if branch != max(counts, key=counts.__getitem__)
    ]
