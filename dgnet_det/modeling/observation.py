"""The decisions of a model's graphs and routed stages in forward passes, and figures of them."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.errors import UserError
from dgnet_det.graph.decisions import Decisions
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.modeling.backbone.base import StagedBackbone
from dgnet_det.modeling.costs import Costs


def dgnet_of(model: nn.Module) -> StagedBackbone:
    """The :class:`StagedBackbone` in a backbone, a detector or a classifier.

    Raises:
        UserError: there is none.
    """
    for module in model.modules():
        if isinstance(module, StagedBackbone):
            return module
    backbone = type(getattr(model, "backbone", model)).__name__
    raise UserError(
        f"MODEL.BACKBONE.NAME: {backbone} is no DG-Net: choose build_dgnet_fpn_backbone"
    )


def deciding_stages(model: nn.Module) -> dict[str, DynamicGraph | RoutedStage]:
    """The graphs and routed stages of a model by name: ``res2.0``, …. Empty for a plain network."""
    return {
        name: stage
        for module in model.modules()
        if isinstance(module, StagedBackbone)
        for name, stage in module.stages().items()
        if isinstance(stage, DynamicGraph | RoutedStage)
    }


def dynamic_graphs(model: nn.Module) -> dict[str, DynamicGraph]:
    """Of :func:`deciding_stages` the graphs."""
    return {n: s for n, s in deciding_stages(model).items() if isinstance(s, DynamicGraph)}


def routed_stages(model: nn.Module) -> dict[str, RoutedStage]:
    """Of :func:`deciding_stages` those that route between branches."""
    return {n: s for n, s in deciding_stages(model).items() if isinstance(s, RoutedStage)}


def check_decides(model: nn.Module) -> None:
    """Check that a model decides anything.

    Raises:
        UserError: it is a plain network.
    """
    if not any(stage.routers for stage in deciding_stages(model).values()):
        raise UserError(
            "MODEL.BACKBONE.NAME, MODEL.DGNET.EDGE_WEIGHTS: a plain network has no edge weights and"
            " no branches to choose from"
        )


@contextmanager
def record_decisions(model: nn.Module) -> Iterator[dict[str, Decisions]]:
    """Record what every one of :func:`deciding_stages` decides, by its name, without gradients.

    The dictionary always holds the decisions of the latest forward pass; it is empty before the
    first.
    """
    latest: dict[str, Decisions] = {}

    def listen(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, make: Callable[[], Decisions]) -> None:
            latest[name] = make().detached()

        return keep

    with ExitStack() as hooks:
        for name, stage in deciding_stages(model).items():
            hooks.enter_context(stage.decisions.register_forward_hook(listen(name)))
        yield latest


def graph_statistics(weights: Decisions) -> dict[str, float]:
    """Figures of a graph's edge weights over a batch: ``mean_weight``, of α or γ·α over the edges
    that routers weigh, closed ones counted as 0; ``open_edges``, the share of them that is open;
    ``absent_nodes``, the share of blocks whose inputs are all closed."""
    return {
        "mean_weight": weights.weight[:, weights.learned].mean().item(),
        "open_edges": weights.value[:, weights.learned].ne(0).double().mean().item(),
        "absent_nodes": weights.absent()[:, 1:-1].double().mean().item(),
    }


class AlphaSpread:
    """The standard deviation over images of the α of every edge. A network whose standard
    deviations are all 0 wires all images alike."""

    def __init__(self) -> None:
        self._seen: dict[str, list[torch.Tensor]] = {}

    def add(self, recorded: Mapping[str, Any]) -> None:
        """Add the images of a forward pass, as :func:`record_decisions` gives it."""
        for name, weights in recorded.items():
            alpha = weights.value[:, weights.learned].double().cpu()
            self._seen.setdefault(name, []).append(alpha)

    def merge(self, other: "AlphaSpread") -> None:
        """Add the images of another process."""
        for name, parts in other._seen.items():
            self._seen.setdefault(name, []).extend(parts)

    def pop(self) -> dict[str, float]:
        """The mean ``alpha_std`` and the largest ``alpha_std_max`` of all edges, over the images
        added since the last call; empty for fewer than two images."""
        seen, self._seen = self._seen, {}
        images = [torch.cat(parts) for parts in seen.values()]
        if not images or len(images[0]) < 2:
            return {}
        std = torch.cat([alpha.std(dim=0) for alpha in images])
        return {"alpha_std": std.mean().item(), "alpha_std_max": std.max().item()}


class ChoiceSpread(AlphaSpread):
    """The multiply-adds that choices cause over images, and how far the choices differ."""

    def __init__(self, costs: Costs) -> None:
        super().__init__()
        self._costs = costs

    def add(self, recorded: Mapping[str, Any]) -> None:
        """Add the images of a forward pass, as :func:`record_decisions` gives it."""
        for name, choices in recorded.items():
            both = torch.stack([choices.gate, choices.weight])
            self._seen.setdefault(name, []).append(both.double().cpu().transpose(0, 1))

    def pop(self) -> dict[str, float]:
        """Figures over the images added since the last call; empty without images.

        ``share`` and ``share_std`` are mean and standard deviation of the multiply-adds, as a share
        of the dearest choices'. ``entropy`` is H(mean w) - mean H(w) of a connection's weights in
        bits, averaged over the connections: 0 where all images weigh alike.
        """
        seen, self._seen = self._seen, {}
        both = {name: torch.cat(parts) for name, parts in seen.items()}
        if not both:
            return {}
        share = self._costs.share({name: of_stage[:, 0] for name, of_stage in both.items()})
        bits = torch.cat([information(of_stage[:, 1]) for of_stage in both.values()])
        return {
            "share": share.mean().item(),
            "share_std": share.std(correction=0).item(),
            "entropy": bits.mean().item(),
        }


def information(weights: Tensor) -> Tensor:
    """H(mean w) - mean H(w) over B images, in bits, of weights [B, C, K]: [C]."""

    def entropy(w: Tensor) -> Tensor:
        return torch.special.entr(w).sum(dim=-1) / math.log(2)

    return entropy(weights.mean(dim=0)) - entropy(weights).mean(dim=0)


@contextmanager
def record_spread(model: nn.Module) -> Iterator[AlphaSpread]:
    """Record the spread of the decisions over the images of all forward passes of ``model``."""
    spread = ChoiceSpread(Costs.of(dgnet_of(model))) if routed_stages(model) else AlphaSpread()
    with record_decisions(model) as latest:
        handle = model.register_forward_hook(lambda *_: spread.add(latest))
        try:
            yield spread
        finally:
            handle.remove()
