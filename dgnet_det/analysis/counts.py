"""Multiply-adds, activations, parameters and structure of a model, and what closed edges save."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from detectron2.config import CfgNode
from detectron2.modeling import FPN
from fvcore.nn import parameter_count
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dgnet_det.config import is_classifier
from dgnet_det.errors import UserError
from dgnet_det.graph.stage import DynamicGraph, PlainStage
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.classifier import DGNetClassifier, build_classifier
from dgnet_det.modeling.observation import record_edge_weights

Size = tuple[int, int]  # height, width

# What each figure means, for the reader of a report.
COUNTED = {
    "params": (
        "elements of nn.Parameters, with nothing frozen (MODEL.BACKBONE.FREEZE_AT taken as 0). The"
        " scale and shift of BN, SyncBN and GN are parameters; those of FrozenBN are buffers"
    ),
    "conv_macs": "multiply-adds of the convolutions alone, as in the paper's Table 1",
    "macs": (
        "multiply-adds of convolutions, linear layers and matrix products (the routers' pooling"
        " too), and of the gathered sums one per element and weighted edge, the fixed chain of the"
        " residual wiring not among them. Norms, activation functions, unweighted additions, other"
        " pooling, RoIAlign and NMS count as none"
    ),
    "activations": "elements of the outputs of convolutions, linear layers and matrix products",
    "backbone": "stem and stages without FPN, one image of exactly the input size, all edges open",
    "model": (
        "the whole model, one image of random pixels padded to the backbone's size divisibility,"
        " all edges open, random weights. The share of the ROI heads depends on the number of"
        " proposals"
    ),
    "dynamic": (
        "the backbone on each image as resized for testing and padded: what ran, without edges of"
        " weight 0 and absent nodes, beside all_open_macs. mean and std are over the images (std"
        " with n in the denominator)"
    ),
}

_CONVOLUTION = torch.ops.aten.convolution
_MATRIX_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)


class Counts(NamedTuple):
    """Integers, each as :data:`COUNTED` says."""

    conv_macs: int
    macs: int
    activations: int


class ImageCounts(NamedTuple):
    """The backbone on one image of ``size``, padding included."""

    size: Size
    ran: Counts
    all_open: Counts


class GraphStructure(NamedTuple):
    """One stage's graph. ``edges`` are all of its edges, ``routed_edges`` those with a weight."""

    name: str
    blocks: int
    nodes: int
    edges: int
    routed_edges: int
    in_channels: int
    out_channels: int
    stride: int
    output_size: Size


def build_for_analysis(cfg: CfgNode) -> nn.Module:
    """The detector or classifier of a config, untrained, with nothing frozen: freezing turns a BN's
    parameters into buffers."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return (build_classifier if is_classifier(cfg) else build_model)(cfg).eval()


def backbone_of(model: nn.Module) -> DGNet:
    """The :class:`DGNet` of a model, out of its FPN where it has one.

    Raises:
        UserError: the model has another backbone.
    """
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, FPN):
        backbone = backbone.bottom_up
    if not isinstance(backbone, DGNet):
        raise UserError(
            f"MODEL.BACKBONE.NAME: {type(backbone).__name__} is no DG-Net: choose"
            " build_dgnet_fpn_backbone or build_dgnet_backbone"
        )
    return backbone


def backbone_counts(backbone: DGNet, size: Size) -> Counts:
    """Counts of ``backbone`` in evaluation mode on one image of ``size``, all edges open.

    Nothing is computed: shapes alone are propagated, so any size takes the same short time.
    """
    device = next(backbone.parameters()).device
    # Where gradients are enabled, a graph leaves nothing out.
    with torch.enable_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        image = torch.empty(1, 3, *size, device=device)
        counts = _operator_counts(lambda: backbone(image))["Global"]
    return _plus_macs(counts, _all_gathered_sums(backbone, size))


def params_by_part(model: nn.Module) -> dict[str, int]:
    """Parameters by part, named as in :func:`model_counts`."""
    counts = parameter_count(model)
    parts = {name: counts[name] for name, _ in model.named_children()}
    if model.backbone is not backbone_of(model):
        with_fpn, bottom_up = parts.pop("backbone"), counts["backbone.bottom_up"]
        parts = {"backbone": bottom_up, "fpn": with_fpn - bottom_up, **parts}
    return {**parts, "total": counts[""]}


@torch.no_grad()
def model_counts(model: nn.Module, size: Size) -> dict[str, Counts]:
    """Counts of a model on one image of random pixels.

    Args:
        model: in evaluation mode; its routers are untrained, so that all edges are open.
        size: of the image before padding.

    Returns:
        Counts by part: ``backbone`` (without FPN), ``fpn`` where there is one, the other parts by
        the names that the model gives them, and ``total``.
    """
    backbone = backbone_of(model)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    device = next(model.parameters()).device
    inputs = image[None].to(device) if isinstance(model, DGNetClassifier) else [{"image": image}]
    padded: list[Size] = []
    with backbone.register_forward_pre_hook(lambda _, args: padded.append(args[0].shape[2:])):
        found = _operator_counts(lambda: model(inputs))

    root = type(model).__name__
    parts = {
        name: found[f"{root}.{name}"]
        for name, _ in model.named_children()
        if f"{root}.{name}" in found
    }
    if model.backbone is not backbone:
        with_fpn, bottom_up = parts.pop("backbone"), found[f"{root}.backbone.bottom_up"]
        fpn = Counts(*(a - b for a, b in zip(with_fpn, bottom_up, strict=True)))
        parts = {"backbone": bottom_up, "fpn": fpn, **parts}
    gathered = _all_gathered_sums(backbone, padded[0])
    parts["backbone"] = _plus_macs(parts["backbone"], gathered)
    parts["total"] = _plus_macs(found["Global"], gathered)
    return parts


@torch.no_grad()
def image_counts(model: nn.Module, image: Tensor) -> ImageCounts:
    """What the backbone of a detector runs on one image: closed edges and absent nodes are left
    out.

    Args:
        model: a detector in evaluation mode.
        image: [3, H, W], pixels 0..255 in the model's channel order.
    """
    backbone = backbone_of(model)
    batch = model.preprocess_image([{"image": image}]).tensor  # type: ignore[operator]
    with record_counts(model) as found:
        backbone(batch)
    ((size, ran),) = found
    return ImageCounts(size, ran, backbone_counts(backbone, size))


@contextmanager
def record_counts(model: nn.Module) -> Iterator[list[tuple[Size, Counts]]]:
    """Count what the backbone of a detector runs, closed edges and absent nodes left out.

    Yields:
        A list that grows by the padded size and the counts of every image that is passed through
        the model, in evaluation mode and alone.
    """
    backbone = backbone_of(model)
    forward = backbone.forward
    found: list[tuple[Size, Counts]] = []

    def counted(batch: Tensor) -> dict[str, Tensor]:
        size = batch.shape[2], batch.shape[3]
        outputs: dict[str, Tensor] = {}
        ran = _operator_counts(lambda: outputs.update(forward(batch)))["Global"]
        sizes = _graph_sizes(backbone, size)
        gathered = sum(
            gathered_sums(*sizes[name], wiring.edges & wiring.weight[0].ne(0))
            for name, wiring in wirings.items()
        )
        found.append((size, _plus_macs(ran, gathered)))
        return outputs

    with record_edge_weights(backbone) as wirings, patch.object(backbone, "forward", counted):
        yield found


def gathered_sums(graph: DynamicGraph, in_size: Size, out_size: Size, edges: Tensor) -> int:
    """Multiply-adds of the gathered sums (the argument of f_j in Eq. 3) of one graph for one image:
    one per element and edge.

    Args:
        graph: a graph with edge weights.
        in_size, out_size: of its input and output.
        edges: [N, N], whether edge i → j, at [j, i], is weighted and open.
    """
    # Edge 0 → 1 carries the raw input; every other edge a tensor of the output's shape.
    raw = int(edges[1, 0])
    others = int(edges.sum()) - raw
    return raw * graph.in_channels * prod(in_size) + others * graph.out_channels * prod(out_size)


def structure(backbone: DGNet, size: Size) -> list[GraphStructure]:
    """The graphs of ``backbone``, in order; ``size`` is the image's."""
    rows = []
    for name, (graph, _, out_size) in _graph_sizes(backbone, size).items():
        routed = isinstance(graph, DynamicGraph)
        blocks, edges = len(graph.nodes), int(graph.edges.sum()) if routed else 0
        chain = blocks + 1 if not routed or graph.fixed_chain else 0
        rows.append(
            GraphStructure(
                name=name,
                blocks=blocks,
                nodes=blocks + 2,
                edges=chain + edges,
                routed_edges=edges,
                in_channels=graph.in_channels,
                out_channels=graph.out_channels,
                stride=graph.stride,
                output_size=out_size,
            )
        )
    return rows


def _graph_sizes(backbone: DGNet, size: Size) -> dict[str, tuple[PlainStage, Size, Size]]:
    """Each graph of ``backbone`` with the sizes of its input and output, for an image of
    ``size``."""

    def strided(size: Size, stride: int) -> Size:
        return -(-size[0] // stride), -(-size[1] // stride)

    size = strided(size, backbone.stem.stride)
    sizes = {}
    for name, stage in backbone.stages().items():
        out_size = strided(size, stage.stride)
        sizes[name] = stage, size, out_size
        size = out_size
    return sizes


def _all_gathered_sums(backbone: DGNet, size: Size) -> int:
    """:func:`gathered_sums` of every graph, all edges open."""
    return sum(
        gathered_sums(graph, in_size, out_size, graph.edges)
        for graph, in_size, out_size in _graph_sizes(backbone, size).values()
        if isinstance(graph, DynamicGraph)
    )


def _operator_counts(run: Callable[[], Any]) -> dict[str, Counts]:
    """Counts of the operators that ``run`` executes, by module (``Model.backbone``), and in all
    (``Global``)."""

    def output_size(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return prod(out_shape)

    outputs = FlopCounterMode(
        display=False,
        custom_mapping={op: output_size for op in (_CONVOLUTION, *_MATRIX_PRODUCTS)},
    )
    with outputs, FlopCounterMode(display=False) as flops:
        run()
    activations = outputs.get_flop_counts()
    return {
        name: Counts(
            conv_macs=by_operator.get(_CONVOLUTION, 0) // 2,
            macs=sum(by_operator.values()) // 2,
            activations=sum(activations[name].values()),
        )
        for name, by_operator in flops.get_flop_counts().items()
    }


def _plus_macs(counts: Counts, macs: int) -> Counts:
    return counts._replace(macs=counts.macs + macs)
