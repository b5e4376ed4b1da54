"""Small graphs of every kind of block, and the edge weights of a forward pass."""

from itertools import pairwise

import torch
from torch import nn

from dgnet_det.graph.decisions import Decisions
from dgnet_det.graph.stage import DynamicGraph
from dgnet_det.graph.wirings import PaperGraph, ResidualGraph
from dgnet_det.modeling.backbone.mobilenetv2 import InvertedResidualNode
from dgnet_det.modeling.backbone.resnet import BasicNode, BottleneckNode

KINDS = ("basic", "bottleneck", "inverted")
DEVICES = ("cpu", "cuda")[: 1 + torch.cuda.is_available()]


def make_blocks(kind: str, channels: list[int], stride: int, wiring: str) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for i, (c_in, c_out) in enumerate(pairwise(channels)):
        s = stride if i == 0 else 1
        if kind == "basic":
            block = BasicNode(c_in, c_out, stride=s)
        elif kind == "bottleneck":
            block = BottleneckNode(c_in, c_out, bottleneck_channels=4, stride=s)
        else:
            block = InvertedResidualNode(c_in, c_out, stride=s, expansion=2, norm="BN")
        if wiring == "paper":
            block.shortcut, block.has_shortcut, block.use_res_connect = None, False, False
        blocks.append(block)
    return blocks


def make_graph(
    kind: str, wiring: str, edge_weights: str = "dynamic", n: int = 4, stride: int = 2
) -> DynamicGraph:
    """A graph with random norms, routers and thresholds: α is spread around τ."""
    blocks = make_blocks(kind, [6] + [8] * n, stride, wiring)
    graph_of = {"paper": PaperGraph, "residual": ResidualGraph}[wiring]
    graph = graph_of(blocks, edge_weights=edge_weights, norm="BN")
    for module in graph.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for parameter in graph.routers.parameters():
        nn.init.normal_(parameter)
    nn.init.uniform_(graph.thresholds, 0.3, 0.7)
    if wiring == "residual":
        for gamma in graph.gammas.values():
            nn.init.normal_(gamma, std=0.5)
    return graph.double().eval()


def random_batch(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, 6, 9, 12, dtype=torch.float64)
    x += 4 * torch.randn(batch, 6, 1, 1, dtype=torch.float64)  # samples route differently
    valid = torch.tensor([[5, 6], [3, 6], [5, 2], [2, 3]])[:batch]
    return x, valid


def decisions_of(graph: DynamicGraph, x: torch.Tensor) -> Decisions:
    """What one forward pass decides, without gradients."""
    seen: list[Decisions] = []
    with (
        torch.no_grad(),
        graph.decisions.register_forward_hook(lambda *args: seen.append(args[2]())),
    ):
        graph(x)
    return seen[0]
