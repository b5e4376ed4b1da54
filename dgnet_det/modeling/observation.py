"""What the graphs of a model decided in a forward pass, and its summary in figures."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dgnet_det.graph.stage import DynamicGraph, Wiring
from dgnet_det.modeling.backbone import DGNet


class RecordedWiring(NamedTuple):
    """A :class:`Wiring` and which of its edges routers weigh."""

    alpha: Tensor
    weight: Tensor
    # Whether the chain j-1 → j is fixed.
    residual: bool
    # The edges that routers weigh, a mask [N, N]; None: those of the complete graph.
    edges: Tensor | None = None

    def routed(self) -> Tensor:
        """The edges that routers weigh, a mask [N, N] with row j for the edges into node j: all
        i < j that are not pruned, in the residual wiring less the fixed chain."""
        if self.edges is not None:
            return self.edges.to(self.alpha.device)
        edges = torch.ones_like(self.alpha[0], dtype=torch.bool)
        return edges.tril(-2 if self.residual else -1)

    def absent(self) -> Tensor:
        """The blocks all of whose inputs are closed or pruned, a mask [B, N]."""
        absent = self.alpha.eq(0).all(dim=2)
        absent[:, 0] = absent[:, -1] = False
        return absent


def dynamic_graphs(model: nn.Module) -> dict[str, DynamicGraph]:
    """The graphs with edge weights of the :class:`DGNet` in ``model``, by name: ``res2.0``, ….
    Empty for the plain network."""
    return {
        f"{stage}.{i}": graph
        for backbone in model.modules()
        if isinstance(backbone, DGNet)
        for stage in backbone.stage_names
        for i, graph in enumerate(backbone.graphs(stage))
        if not graph.plain
    }


@contextmanager
def record_wiring(model: nn.Module) -> Iterator[dict[str, RecordedWiring]]:
    """Record the wiring of every graph of ``model``, by name as in :func:`dynamic_graphs`.

    The dictionary always holds that of the latest forward pass; it is empty before the first.
    """
    latest: dict[str, RecordedWiring] = {}

    def keep(
        name: str, graph: DynamicGraph, module: nn.Module, inputs: Any, wiring: Wiring
    ) -> None:
        latest[name] = RecordedWiring(*wiring, graph.residual, graph.routed_edges())

    with ExitStack() as hooks:
        for name, graph in dynamic_graphs(model).items():
            hooks.enter_context(graph.observer.register_forward_hook(partial(keep, name, graph)))
        yield latest


def graph_statistics(wiring: RecordedWiring) -> dict[str, float]:
    """A graph's wiring in figures, averaged over the batch.

    Returns:
        ``mean_weight``: of the routed edges, closed ones counted as 0: of α, or of γ·α in the
        residual wiring. ``open_edges``: the share of routed edges that are open. ``absent_nodes``:
        the share of blocks all of whose inputs are closed.
    """
    routed = wiring.routed()
    return {
        "mean_weight": wiring.weight[:, routed].mean().item(),
        "open_edges": wiring.alpha[:, routed].ne(0).double().mean().item(),
        "absent_nodes": wiring.absent()[:, 1:-1].double().mean().item(),
    }
