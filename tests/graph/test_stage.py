"""The graph against the equations written out in float64 loops (reference.py)."""

import gc
import weakref

import pytest
import torch
from helpers.graphs import DEVICES, KINDS, decisions_of, make_blocks, make_graph, random_batch
from helpers.reference import pooled, reference_graph
from torch import nn

from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.graph.wirings import PaperGraph, ResidualGraph


@pytest.mark.parametrize("wiring", ["paper", "residual"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trial", range(4))
@pytest.mark.parametrize("device", DEVICES)
def test_equals_reference_in_forward_and_gradient(
    kind: str, wiring: str, trial: int, device: str
) -> None:
    torch.manual_seed(trial)
    graph = make_graph(kind, wiring).to(device)
    x, valid = (tensor.to(device) for tensor in random_batch())
    x.requires_grad_()
    expected = reference_graph(graph, x, valid.tolist())
    grad = torch.randn_like(expected)
    parameters = [p for p in graph.parameters() if p.requires_grad]
    want = torch.autograd.grad(expected, [x, *parameters], grad, allow_unused=True)

    output = graph(x, valid)
    got = torch.autograd.grad(output, [x, *parameters], grad, allow_unused=True)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    for g, w in zip(got, want, strict=True):
        if g is None or w is None:  # a node that is absent in every sample
            assert not any(t.any() for t in (g, w) if t is not None)
        else:
            torch.testing.assert_close(g, w, rtol=1e-7, atol=1e-8)

    with torch.no_grad():
        skipping = graph(x, valid)
    torch.testing.assert_close(skipping, expected, rtol=1e-9, atol=1e-9)


def test_the_random_graphs_close_edges_and_lose_nodes() -> None:
    """The comparison above means something: samples close different edges, nodes are absent."""
    closed_differently = absent_somewhere = 0
    for trial in range(4):
        torch.manual_seed(trial)
        graph = make_graph("basic", "paper")
        opened = decisions_of(graph, random_batch()[0]).value != 0
        closed_differently += bool((opened[0] != opened[1]).any())
        absent_somewhere += int((~opened[:, 1:].any(dim=2)).sum())
    assert closed_differently >= 2
    assert absent_somewhere >= 1


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_blocks_learn_beside_frozen_routers(wiring: str) -> None:
    """Then a gathered sum has no gradient of its own, but the block reads it in the backward pass,
    whatever ran in between."""
    graph = make_graph("basic", wiring)
    for name, parameter in graph.named_parameters():
        parameter.requires_grad_(name.startswith("nodes.3"))
    x, valid = random_batch()
    parameters = [p for p in graph.parameters() if p.requires_grad]
    expected = reference_graph(graph, x, valid.tolist())
    want = torch.autograd.grad(expected.square().sum(), parameters)
    output = graph(x, valid)
    with torch.no_grad():
        graph(3 * x, valid)
    got = torch.autograd.grad(output.square().sum(), parameters)
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_gradcheck(wiring: str) -> None:
    """With τ far below every α nothing is near the step, and the graph is smooth but for ReLU6."""
    graph = make_graph("inverted", wiring, n=2)
    nn.init.constant_(graph.thresholds, -10.0)
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = graph.routers["0"].linear.weight

    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(graph, {"routers.0.linear.weight": w}, (x,))

    assert torch.autograd.gradcheck(f, (x, weight), eps=1e-7, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("wiring", ["paper", "residual"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_sample_does_not_depend_on_its_batch_mates(wiring: str, grad: bool) -> None:
    graph = make_graph("bottleneck", wiring)
    x, valid = random_batch(4)
    with torch.set_grad_enabled(grad):
        together = graph(x, valid)
        alone = torch.cat([graph(x[b : b + 1], valid[b : b + 1]) for b in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


class Counting(nn.Module):
    """A node that counts the samples it ran for."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels = self.out_channels = 2
        self.stride = 1
        self.shortcut = None
        self.samples = 0

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.samples += x.shape[0]
        return x + 1


def chosen_alpha_graph(bias: dict[int, list[float]], n: int = 2) -> DynamicGraph:
    """A graph of counting nodes with given router biases, W = 0 and τ = 0.5."""
    blocks = [Counting() for _ in range(n)]
    graph = PaperGraph(blocks, edge_weights="dynamic", norm="BN")
    for router in graph.routers.values():
        nn.init.zeros_(router.linear.weight)
        nn.init.zeros_(router.linear.bias)
    for i, values in bias.items():
        graph.routers[str(i)].linear.bias.data = torch.tensor(values)
    graph.thresholds.data.fill_(0.5)
    return graph.eval()


def test_a_node_without_inputs_is_not_run() -> None:
    graph = chosen_alpha_graph({0: [0.0, 0.0, 5.0], 1: [5.0, 5.0], 2: [5.0]})
    # Edge 0→1 is open where channel 0 is positive, edge 0→2 never: node 1, and node 2 behind it,
    # run for the positive samples alone.
    graph.routers["0"].linear.weight.data[0, 0] = 100.0
    graph.routers["0"].linear.bias.data[1] = -5.0
    x = torch.stack([torch.ones(2, 3, 3), -torch.ones(2, 3, 3), 2 * torch.ones(2, 3, 3)])
    with torch.no_grad():
        output = graph(x)
    assert [node.samples for node in graph.nodes.values()] == [2, 2]
    a = torch.sigmoid(torch.tensor(5.0))
    first = torch.tensor([1.0, -1.0, 2.0])
    x1 = first + 1
    x2 = a * x1 + 1
    expected = a * first + torch.tensor([1.0, 0.0, 1.0]) * (a * x1 + a * x2)
    torch.testing.assert_close(output[:, 0, 0, 0], expected)
    with torch.no_grad():
        graph(-x[:1])
    assert [node.samples for node in graph.nodes.values()] == [2, 2]


def test_the_output_keeps_its_strongest_input() -> None:
    graph = chosen_alpha_graph({0: [5.0, 5.0, -3.0], 1: [5.0, -1.0], 2: [-2.0]})
    x = torch.ones(1, 2, 3, 3)
    alpha = decisions_of(graph, x).value[0]
    assert alpha[3].ne(0).tolist() == [False, True, False, False]
    a = torch.sigmoid(torch.tensor(5.0))
    expected = torch.sigmoid(torch.tensor(-1.0)) * (a + 1)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            torch.testing.assert_close(graph(x)[0, 0, 0, 0].detach(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_paper_wiring_with_alpha_one_unrolls_to_a_residual_network(kind: str) -> None:
    """x_j = branch_j(activation(s_j)), s_{j+1} = s_j + x_j; s_1 = x, but s_2 = P(x) + x_1."""
    graph = make_graph(kind, "paper", "static", n=3)
    for router in graph.routers.values():
        nn.init.constant_(router.bias, 50.0)
    nn.init.zeros_(graph.thresholds)
    x, _ = random_batch(2)
    act = graph.node(1).activation
    total = graph.projection(pooled(x, 2)) + graph.node(1)(act(x.clone()))
    for j in (2, 3):
        total = total + graph.node(j)(act(total.clone()))
    expected = act(total.clone())
    torch.testing.assert_close(graph(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("edge_weights", ["dynamic", "static"])
@pytest.mark.parametrize("kind", KINDS)
def test_residual_wiring_starts_as_the_static_stage_and_everything_moves(
    kind: str, edge_weights: str
) -> None:
    blocks = make_blocks(kind, [6, 8, 8, 8], 2, "residual")
    graph = ResidualGraph(blocks, edge_weights=edge_weights, norm="BN").eval()
    x = torch.randn(2, 6, 8, 8)
    static = nn.Sequential(*blocks)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            torch.testing.assert_close(graph(x), static(x), rtol=1e-6, atol=1e-6)
    start = {name: p.detach().clone() for name, p in graph.named_parameters()}
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.01, momentum=0.9)
    target = torch.randn_like(static(x))
    for _ in range(3):
        optimizer.zero_grad()
        (graph(x) - target).square().mean().backward()
        optimizer.step()
    for name, p in graph.named_parameters():
        moved = p != start[name]
        if name.endswith("linear.weight"):  # an edge's weights: one of them is enough
            moved = moved.any(dim=1)
        graph_only = name.startswith(("routers", "gammas", "thresholds"))
        assert moved.all() if graph_only else moved.any(), name


def test_edge_counts() -> None:
    for n, edges in {1: 3, 2: 6, 3: 10, 4: 15, 6: 28, 23: 300}.items():
        graph = make_graph("basic", "paper", n=n)
        assert sum(r.linear.out_features for r in graph.routers.values()) == edges
        residual = make_graph("basic", "residual", n=n)
        assert sum(g.numel() for g in residual.gammas.values()) == edges - (n + 1)


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_a_forward_pass_without_a_backward_pass_leaves_no_memory_behind(wiring: str) -> None:
    graph = make_graph("bottleneck", wiring)
    seen = []
    for module in graph.nodes.modules():
        module.register_forward_hook(lambda module, args, y: seen.append(weakref.ref(y)))
    graph(*random_batch())
    gc.collect()
    assert len(seen) > 10
    assert not any(output() is not None for output in seen)


def test_inference_mode_and_no_grad_in_one_thread() -> None:
    graph = make_graph("basic", "paper")
    x, valid = random_batch()
    with torch.inference_mode():
        first = graph(x, valid)
    with torch.no_grad():
        torch.testing.assert_close(graph(x, valid), first.clone())


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_compiled_graph_gives_the_same_output_and_gradients(wiring: str) -> None:
    graph = make_graph("inverted", wiring, n=2)
    x, valid = random_batch()
    compiled = torch.compile(graph, backend="aot_eager", fullgraph=True)
    results = []
    for run in (graph, compiled):
        graph.zero_grad()
        output = run(x, valid)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in graph.parameters() if p.grad is not None)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-8, atol=1e-8)


def closing_graph() -> PaperGraph:
    """A graph in training mode in which node 2 is fed by the samples with a positive channel 0."""
    graph = PaperGraph(
        make_blocks("basic", [8, 8, 8], 1, "paper"), edge_weights="dynamic", norm="BN"
    )
    for router in graph.routers.values():
        nn.init.zeros_(router.linear.weight)
        nn.init.constant_(router.linear.bias, 3.0)
    for i in ("0", "1"):  # the edge into node 2 is the last but one
        nn.init.constant_(graph.routers[i].linear.bias[-2:-1].detach(), -3.0)
    graph.routers["0"].linear.weight.data[-2, 0] = 100.0
    nn.init.constant_(graph.thresholds, 0.5)
    return graph.train()


def test_batch_statistics_are_those_of_the_samples_that_feed_the_node() -> None:
    graph = closing_graph()
    x = torch.randn(4, 8, 5, 5)
    x[:2, 0], x[2:, 0] = x[:2, 0].abs(), -x[2:, 0].abs()
    seen = []
    graph.node(2).conv1.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    weights = []
    graph.decisions.register_forward_hook(lambda *args: weights.append(args[2]()))
    graph(x).sum().backward()
    assert weights[0].absent()[:, 2].tolist() == [False, False, True, True]
    assert seen[0].shape[0] == 2
    norm = graph.node(2).conv1.norm
    conv = nn.functional.conv2d(seen[0], graph.node(2).conv1.weight, padding=1)
    torch.testing.assert_close(norm.running_mean, 0.1 * conv.mean(dim=(0, 2, 3)))


def test_a_node_that_no_sample_feeds_still_learns() -> None:
    graph = closing_graph()
    x = torch.randn(3, 8, 5, 5)
    x[:, 0] = -x[:, 0].abs()
    graph(x).square().sum().backward()
    assert all(p.grad is not None for p in graph.parameters())
    assert graph.node(2).conv2.weight.grad.any()
    assert graph.routers["1"].linear.bias.grad[-2] != 0  # of edge 1 → 2, the strongest
    graph.eval()
    with torch.no_grad():
        absent = decisions_of(graph, x).absent()
    assert absent[:, 2].all()


@torch.no_grad()
def test_statistics_that_are_taken_anew_are_never_of_nothing() -> None:
    """As fvcore's ``update_bn_stats`` takes them: in training mode, without gradients."""
    graph, x = closing_graph(), torch.randn(3, 8, 5, 5)
    x[:, 0] = -x[:, 0].abs()
    norm = graph.node(2).conv1.norm
    before = norm.running_var.clone()
    graph(x)
    assert not torch.equal(norm.running_var, before)


def test_a_frozen_graph_decides_as_at_inference() -> None:
    graph, x = closing_graph(), torch.randn(3, 8, 5, 5)
    x[:, 0] = -x[:, 0].abs()
    graph.freeze()
    for norm in [m for m in graph.modules() if isinstance(m, nn.BatchNorm2d)]:
        norm.eval()
    trained = graph(x)
    torch.testing.assert_close(trained, graph.eval()(x))


def test_batch_norm_never_sees_a_single_value() -> None:
    """Feature maps of 1 × 1, as a classifier of small images has them, and a node that one sample
    feeds."""
    graph = closing_graph()
    x = torch.randn(3, 8, 1, 1)
    x[:, 0] = -x[:, 0].abs()
    x[1, 0] = 1.0
    weights = []
    graph.decisions.register_forward_hook(lambda *args: weights.append(args[2]()))
    graph(x).sum().backward()
    absent = weights[0].absent()[:, 2].tolist()
    assert sum(absent) == 1
    assert not absent[1]
