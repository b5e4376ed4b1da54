"""What the graphs of a model decided in a forward pass, and its summary in figures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from dgnet_det.errors import UserError
from dgnet_det.graph.routing import EdgeWeights
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.modeling.backbone import DGNet


def dgnet_of(model: nn.Module) -> DGNet:
    """The :class:`DGNet` in a backbone, a detector or a classifier.

    Raises:
        UserError: there is none.
    """
    for module in model.modules():
        if isinstance(module, DGNet):
            return module
    backbone = type(getattr(model, "backbone", model)).__name__
    raise UserError(
        f"MODEL.BACKBONE.NAME: {backbone} is no DG-Net: choose build_dgnet_fpn_backbone"
    )


def dynamic_graphs(model: nn.Module) -> dict[str, DynamicGraph]:
    """The graphs of a model by name: ``res2.0``, …. Empty for a plain network."""
    return {
        name: stage
        for module in model.modules()
        if isinstance(module, DGNet)
        for name, stage in module.stages().items()
        if isinstance(stage, DynamicGraph)
    }


@contextmanager
def record_edge_weights(model: nn.Module) -> Iterator[dict[str, EdgeWeights]]:
    """Record the edge weights of every graph of ``model``, by name as in :func:`dynamic_graphs`,
    without gradients.

    The dictionary always holds those of the latest forward pass; it is empty before the first.
    """
    latest: dict[str, EdgeWeights] = {}

    def keep(name: str, weights: EdgeWeights) -> None:
        latest[name] = weights.detach()

    observers: list[tuple[DynamicGraph, Callable[[EdgeWeights], None]]] = [
        (graph, partial(keep, name)) for name, graph in dynamic_graphs(model).items()
    ]
    for graph, observer in observers:
        graph.observers.append(observer)
    try:
        yield latest
    finally:
        for graph, observer in observers:
            graph.observers.remove(observer)


def graph_statistics(weights: EdgeWeights) -> dict[str, float]:
    """A graph's edge weights in figures.

    Returns:
        ``mean_weight``: of the routed edges, closed ones counted as 0: of α, or of γ·α in the
        residual wiring, averaged over the batch. ``open_edges``: the share of routed edges that are
        open. ``absent_nodes``: the share of blocks all of whose inputs are closed.
    """
    alpha = weights.alpha[:, weights.edges]
    return {
        "mean_weight": weights.weight[:, weights.edges].mean().item(),
        "open_edges": alpha.ne(0).double().mean().item(),
        "absent_nodes": weights.absent()[:, 1:-1].double().mean().item(),
    }


class AlphaSpread:
    """The spread of α over images: for every routed edge its standard deviation over the images
    seen, and of these the mean and the largest. The network is dynamic in so far as it is not 0."""

    def __init__(self) -> None:
        self._seen: dict[str, list[torch.Tensor]] = {}

    def add(self, recorded: dict[str, EdgeWeights]) -> None:
        """Add the images of a forward pass, as :func:`record_edge_weights` gives it."""
        for name, weights in recorded.items():
            alpha = weights.alpha[:, weights.edges].double().cpu()
            self._seen.setdefault(name, []).append(alpha)

    def merge(self, other: "AlphaSpread") -> None:
        """Add the images of another process."""
        for name, parts in other._seen.items():
            self._seen.setdefault(name, []).extend(parts)

    def pop(self) -> dict[str, float]:
        """``alpha_std`` and ``alpha_std_max`` over the images added since the last call, all
        graphs' edges together; empty for fewer than two images."""
        seen, self._seen = self._seen, {}
        images = [torch.cat(parts) for parts in seen.values()]
        if not images or len(images[0]) < 2:
            return {}
        std = torch.cat([alpha.std(dim=0) for alpha in images])
        return {"alpha_std": std.mean().item(), "alpha_std_max": std.max().item()}


@contextmanager
def record_alpha_spread(model: nn.Module) -> Iterator[AlphaSpread]:
    """The spread of α over the images of all forward passes of ``model`` in the body."""
    spread = AlphaSpread()
    with record_edge_weights(model) as latest:
        handle = model.register_forward_hook(lambda *_: spread.add(latest))
        try:
            yield spread
        finally:
            handle.remove()
