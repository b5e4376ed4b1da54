"""What a graph moves, keeps and multiplies, counted. Seconds are for docs/performance.md."""

import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from helpers.graphs import make_blocks, make_graph
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dgnet_det.graph import aggregation
from dgnet_det.graph.aggregation import weighted_sum
from dgnet_det.graph.stage import DynamicGraph, PlainStage
from dgnet_det.modeling.folding import fold_frozen_norms

SIZE = 2 * 8 * 16 * 16 * 8  # bytes of a float64 [2, 8, 16, 16]


class Traffic(TorchDispatchMode):
    """Bytes of the large tensors that operators read and write. What is added to in place lies in
    a core's cache: it is counted when it is first written."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.written = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mul", "add_", "dot", "zero_", "copy_", "clone", "_to_copy"):
            first = 1 if name == "add_" else 0
            self.read += sum(map(_bytes, tree_leaves(args[first:]))) * (name != "zero_")
            self.written += sum(map(_bytes, tree_leaves(out))) * (name != "add_")
        return out


def _bytes(x: object) -> int:
    return x.numel() * x.element_size() if isinstance(x, Tensor) and x.dim() else 0


def traffic(run: Callable[[], object]) -> tuple[float, float]:
    """Read and written, in feature maps of ``SIZE`` bytes."""
    with Traffic() as counted:
        run()
    return counted.read / SIZE, counted.written / SIZE


def inputs(k: int, **kwargs: Any) -> list[Tensor]:
    return [torch.randn(2, 8, 16, 16, dtype=torch.float64, **kwargs) for _ in range(k)]


def test_a_sum_reads_its_open_inputs_once_and_writes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "SMALL", 0)
    xs, weights = inputs(6), torch.full((2, 6), 0.5)
    with torch.no_grad():
        assert traffic(lambda: weighted_sum(xs, weights)) == (6, 1)
        weights[0, :3] = 0  # half of the edges of one of two samples
        assert traffic(lambda: weighted_sum(xs, weights)) == (4.5, 1)
        weights[0] = 0
        assert traffic(lambda: weighted_sum(xs, weights)) == (3, 1)
        # In place the last input is there already.
        weights[:] = torch.tensor([0.5] * 5 + [1.0])
        assert traffic(lambda: weighted_sum(xs, weights, out=xs[-1])) == (5, 0)


def test_a_backward_pass_goes_twice_over_the_open_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the gradients of the weights, which reads inputs and gradient, once for those of
    the inputs, which writes them."""
    monkeypatch.setattr(aggregation, "SMALL", 0)
    k = 4
    xs, weights = inputs(k, requires_grad=True), torch.full((2, k), 0.5, requires_grad=True)
    total = weighted_sum(xs, weights)
    grad = torch.ones_like(total)
    read, written = traffic(lambda: torch.autograd.grad(total, [weights, *xs], grad))
    assert read == pytest.approx(3 * k, rel=0.01)
    assert written == pytest.approx(k, rel=0.01)


def frozen(kind: str, wiring: str) -> tuple[DynamicGraph, PlainStage]:
    """A graph with open edges and norms as in a fine-tuning, and the plain stage of its blocks."""
    dynamic = make_graph(kind, wiring, stride=1)
    nn.init.zeros_(dynamic.thresholds)
    static = PlainStage(make_blocks(kind, [6, 8, 8, 8, 8], 1, "residual")).double()
    graph, plain = map(FrozenBatchNorm2d.convert_frozen_batchnorm, (dynamic, static))
    for module in (graph, plain):
        fold_frozen_norms(module)
    return cast(DynamicGraph, graph), cast(PlainStage, plain)


class Made(TorchDispatchMode):
    """The storages that operators made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.storages = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.storages.update(x.untyped_storage() for x in tree_leaves(out) if _bytes(x))
        return out


def kept(module: nn.Module, x: Tensor) -> float:
    """What is there after a forward pass for the backward pass, with the output, in feature maps
    of ``SIZE`` bytes. Parameters and ``x`` are not counted."""
    with Made() as made:
        output = module(x)
    there = {s.data_ptr(): s.nbytes() for s in made.storages}
    for tensor in (x, *module.parameters(), *module.buffers()):
        there.pop(tensor.untyped_storage().data_ptr(), None)
    del output
    return sum(there.values()) / SIZE


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_training_keeps_two_feature_maps_more_than_the_plain_stage(kind: str) -> None:
    """The projection, and the last block's output beside the sum of the output node."""
    graph, plain = frozen(kind, "residual")
    x = torch.randn(2, 6, 16, 16, dtype=torch.float64, requires_grad=True)
    # 0.2: of eight channels, one is much for the weights of an average.
    assert kept(graph, x) - kept(plain, x) <= 2.25


def test_a_graph_multiplies_as_its_plain_stage_and_its_routers_do() -> None:
    graph, plain = frozen("basic", "residual")
    x = torch.randn(2, 6, 16, 16, dtype=torch.float64)
    flops = []
    for module in (graph, plain):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        flops.append(counter.get_total_flops())
    routers = sum(router.linear.weight.numel() for router in graph.routers.values())
    pooling = len(graph.routers) * 8 * 16 * 16
    assert flops[0] - flops[1] == 2 * 2 * (routers + pooling)
