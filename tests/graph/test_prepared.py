"""A prepared graph against the same graph as it was, whatever the size of its feature maps."""

import copy
import threading

import pytest
import torch
from helpers.graphs import DEVICES, KINDS, decisions_of, make_graph, random_batch
from torch import nn

from dgnet_det.graph import prepared
from dgnet_det.graph.prepared import prepare
from dgnet_det.graph.stage import DynamicGraph


def pair(kind: str, wiring: str, *, closed: bool) -> tuple[DynamicGraph, DynamicGraph]:
    """A graph, and a prepared copy."""
    graph = make_graph(kind, wiring)
    if not closed:
        nn.init.zeros_(graph.thresholds)
    ready = copy.deepcopy(graph)
    prepare(ready)
    return graph, ready


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("largest", [0, 2**20], ids=["sums in pieces", "matrix products"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("wiring", ["paper", "residual"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_outputs_and_decisions_stay(
    kind: str,
    wiring: str,
    closed: bool,
    last: bool,
    largest: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepared, "LARGEST", largest)
    torch.manual_seed(0)
    graph, ready = (g.to(device) for g in pair(kind, wiring, closed=closed))
    if last:
        ready.to(memory_format=torch.channels_last)
    for batch in (3, 1, 3):  # memory is made anew for another shape
        x, valid = (t.to(device) for t in random_batch(batch))
        expected = graph(x, valid)
        x = x.to(memory_format=torch.channels_last) if last else x
        with torch.inference_mode(batch == 1):
            output = ready(x, valid)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
        kept = output.clone()
        ready(-x, valid)
        assert torch.equal(output, kept)
    for got, want in zip(decisions_of(ready, x)[:4], decisions_of(graph, x)[:4], strict=True):
        torch.testing.assert_close(got, want)


def test_a_prepared_graph_still_has_gradients() -> None:
    graph, ready = pair("basic", "paper", closed=False)
    x = random_batch()[0]
    grads = []
    for g in (graph, ready):
        x_g = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(g(x_g).square().sum(), x_g)[0])
    torch.testing.assert_close(grads[1], grads[0])


@torch.no_grad()
def test_every_thread_has_memory_of_its_own() -> None:
    graph, ready = pair("basic", "residual", closed=False)
    inputs = [random_batch()[0] for _ in range(4)]
    expected = [graph(x) for x in inputs]
    found: dict[int, list[torch.Tensor]] = {}

    @torch.no_grad()
    def work(k: int) -> None:
        found[k] = [ready(inputs[k]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, outputs in found.items():
        for output in outputs:
            torch.testing.assert_close(output, expected[k])
