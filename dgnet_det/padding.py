"""In a batch, every image gets what Detectron2 computes for it alone.

Alone, an image is padded only to a multiple of the backbone's size divisibility: that is its *own
size* here. In a batch, Detectron2 pads it further, at the bottom and right, to the size of the
largest. That padding is zero in the image, but not behind the first bias, and whatever looks
beside its own position then carries it into the image. So each such layer finds, in front of the
padding beyond an image's own size, what it found there alone:

- a convolution larger than 1×1: zeros, as if the map ended there;
- an average over positions (squeeze-and-excitation, group norm): nothing;
- ROIAlign: the last row and column again, to which it clamps at the end of a map;
- the choice of proposals or detections and the labelling of anchors: no anchors.

Layers that do not look beside their own position are left alone, so the padding of other feature
maps holds anything. An image alone, and a batch of images of one own size, have no such padding,
and nothing is done. Batch norm in training mode mixes the images of a batch whatever one does.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .routing import valid_sizes

# As a score it is below every other, also in float16. As an anchor's deltas it shrinks the box to
# nothing, and Detectron2 drops empty boxes.
NOWHERE = -1e4


class Padding(NamedTuple):
    """What padding a batch has beyond its images' own sizes. Sizes are (height, width)."""

    canvas: tuple[int, int]  # of the batch, pixels
    own: tuple[tuple[int, int], ...]  # of each image, pixels

    @classmethod
    def of(cls, images: Tensor, size_divisibility: int) -> "Padding | None":
        """Of normalised images [B, C, H, W]; None if every image's own size is that of the
        batch."""
        canvas, step = (images.shape[2], images.shape[3]), max(size_divisibility, 1)
        own = [
            (min(-(-height // step) * step, canvas[0]), min(-(-width // step) * step, canvas[1]))
            for height, width in valid_sizes(images).tolist()
        ]
        return None if set(own) == {canvas} else cls(canvas, tuple(own))

    def extents(self, height: int, width: int) -> list[tuple[int, int]]:
        """The part of a feature map of ``height`` × ``width`` that each image has alone."""
        stride = 1
        while self._at(stride, self.canvas) != (height, width):
            stride *= 2
            assert stride <= 2 * max(self.canvas), f"no map of {self.canvas}: {height} × {width}"
        return [self._at(stride, size) for size in self.own]

    def inside(self, stride: int, device: torch.device) -> Tensor:
        """Which positions of a feature map an image has alone, [B, H · W], bool."""
        height, width = self._at(stride, self.canvas)
        inside = torch.zeros(len(self.own), height, width, dtype=torch.bool, device=device)
        for image, size in zip(inside, self.own, strict=True):
            h, w = self._at(stride, size)
            image[:h, :w] = True
        return inside.flatten(1)

    @staticmethod
    def _at(stride: int, size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // stride), -(-size[1] // stride)


class BatchPadding:
    """The padding of the batch that is in a model, and the hooks by which its layers heed it.

    Nothing behind the backbone's input is told the images' sizes, so this is kept beside the model,
    from one batch's entry to the next's. While tracing, which takes one image alone, there is none.
    """

    def __init__(self, size_divisibility: int = 1) -> None:
        self.size_divisibility = size_divisibility
        self.current: Padding | None = None

    def read(self, module: nn.Module, args: tuple[Tensor]) -> None:
        """Forward pre-hook of the module that the images enter."""
        alone = torch.jit.is_tracing() or len(args[0]) == 1
        self.current = None if alone else Padding.of(args[0], self.size_divisibility)

    def only_samples(self, chosen: Sequence[bool]) -> AbstractContextManager:
        """A context for layers that run for the ``chosen`` images of the batch alone."""
        if self.current is None:
            return nullcontext()
        sizes = zip(self.current.own, chosen, strict=True)
        own = tuple(size for size, is_chosen in sizes if is_chosen)
        return _Becomes(self, self.current._replace(own=own))

    def recompute_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """``context_fn`` for :func:`torch.utils.checkpoint.checkpoint`: what is recomputed, in the
        backward pass, has the padding of its own forward pass."""
        return nullcontext(), _Becomes(self, self.current)

    def end_maps(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        """Forward pre-hook of convolutions: each image's part of the input ends in zeros."""
        if self.current is None:
            return None
        return (_EndMaps.apply(args[0], self.current.extents(*args[0].shape[2:])),)

    def and_end_maps(self, make: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``make``, and what :meth:`end_maps` does to its result in the forward pass of this batch:
        for an input of convolutions that is made again in the backward pass."""
        padding = self.current
        if padding is None:
            return make

        def made(x: Tensor) -> Tensor:
            x = make(x)
            _fill(x, padding.extents(*x.shape[2:]), 0)
            return x

        return made

    def apply_to_each(
        self, module: nn.Module, args: tuple[Tensor], output: Tensor
    ) -> Tensor | None:
        """Forward hook of layers that average over positions: apply them to each image's part."""
        if self.current is None:
            return None
        height, width = output.shape[2:]
        parts = []
        for b, (h, w) in enumerate(self.current.extents(*args[0].shape[2:])):
            part = module.forward(args[0][b : b + 1, :, :h, :w])
            parts.append(F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2])))
        return torch.cat(parts)

    def repeat_ends(
        self, module: nn.Module, args: tuple[list[Tensor], Any]
    ) -> tuple[list[Tensor], Any] | None:
        """Forward pre-hook of ROI poolers: each image's part of a map goes on as it ends."""
        if self.current is None:
            return None
        features, boxes = args
        extents = [self.current.extents(*x.shape[2:]) for x in features]
        return [_RepeatEnds.apply(*pair) for pair in zip(features, extents, strict=True)], boxes

    def drop_anchors(
        self, module: nn.Module, args: Any, output: tuple[list[Tensor], list[Tensor]]
    ) -> None:
        """Forward hook of dense heads: anchors that an image does not have alone win nothing."""
        if self.current is not None:
            for x in (*output[0], *output[1]):
                _fill(x.data, self.current.extents(*x.shape[2:]), NOWHERE)


class _Becomes:
    """A context in which a batch's padding is ``padding``. It can be entered again."""

    def __init__(self, batch: BatchPadding, padding: Padding | None) -> None:
        self.batch = batch
        self.padding = padding

    def __enter__(self) -> None:
        self.before, self.batch.current = self.batch.current, self.padding

    def __exit__(self, *error: object) -> None:
        self.batch.current = self.before


def mask_padding(model: nn.Module) -> None:
    """Make a detector compute in a batch what it computes for each image alone, up to rounding, in
    training and at inference.

    Args:
        model: of Detectron2's ``GeneralizedRCNN`` or ``RetinaNet``, its backbone an FPN. Changed in
            place, by hooks; its parameters and their names stay.
    """
    backbone = cast(Backbone, model.get_submodule("backbone"))
    batch = BatchPadding(backbone.size_divisibility)
    cast(nn.Module, getattr(backbone, "bottom_up", backbone)).register_forward_pre_hook(batch.read)
    parts = ("backbone", "proposal_generator", "head")
    on_maps = nn.ModuleList(getattr(model, name) for name in parts if hasattr(model, name))
    for module in on_maps.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.register_forward_pre_hook(batch.end_maps)
        elif isinstance(module, nn.AdaptiveAvgPool2d | nn.GroupNorm):
            module.register_forward_hook(batch.apply_to_each)
        elif isinstance(getattr(module, "padding", None), BatchPadding):
            cast(Any, module).padding = batch  # a graph's
    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(batch.repeat_ends)
        for detectron2_class, (own_class, head) in OWN_ANCHORS.items():
            if type(module) is detectron2_class:
                # Detectron2 has made it, and made its parts: a new one would repeat all of that.
                module.__class__ = own_class
                cast(Any, module).padding = batch
                module.get_submodule(head).register_forward_hook(batch.drop_anchors)


class OwnAnchorsRPN(RPN):
    """Detectron2's :class:`RPN`, trained on the anchors that each image has alone."""

    padding: BatchPadding

    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`RPN.label_and_sample_anchors`; other anchors are ignored."""
        label = super().label_and_sample_anchors
        return _label_own(label, self, anchors, gt_instances)


class OwnAnchorsRetinaNet(RetinaNet):
    """Detectron2's :class:`RetinaNet`, trained on the anchors that each image has alone."""

    padding: BatchPadding

    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`RetinaNet.label_anchors`; other anchors are ignored."""
        return _label_own(super().label_anchors, self, anchors, gt_instances)


# Which class takes whose place, and the name of its dense head.
OWN_ANCHORS: dict[type[nn.Module], tuple[type[nn.Module], str]] = {
    RPN: (OwnAnchorsRPN, "rpn_head"),
    RetinaNet: (OwnAnchorsRetinaNet, "head"),
}


def _label_own(
    label: Callable[..., tuple[list[Tensor], list[Tensor]]],
    detector: OwnAnchorsRPN | OwnAnchorsRetinaNet,
    anchors: list[Boxes],
    instances: list[Instances],
) -> tuple[list[Tensor], list[Tensor]]:
    """``label`` for each image and the anchors that it has alone; -1, to be ignored, elsewhere."""
    padding, generator = detector.padding.current, detector.anchor_generator
    if padding is None:
        return label(anchors, instances)
    boxes = Boxes.cat(anchors)
    levels = zip(generator.strides, generator.num_anchors, strict=True)
    insides = [padding.inside(s, boxes.device).repeat_interleave(k, dim=1) for s, k in levels]
    labels, matched = [], []
    for own, gt in zip(torch.cat(insides, dim=1), instances, strict=True):
        (own_labels,), (own_matched,) = label([boxes[own]], [gt])
        labels.append(own_labels.new_full(own.shape, -1))
        labels[-1][own] = own_labels
        matched.append(torch.zeros_like(boxes.tensor))
        matched[-1][own] = own_matched
    return labels, matched


def _fill(x: Tensor, extents: Sequence[tuple[int, int]], value: float) -> None:
    """Overwrite x [B, C, H, W] beyond each image's extent."""
    for image, (h, w) in zip(x, extents, strict=True):
        image[:, h:] = value
        image[:, :h, w:] = value


class _EndMaps(torch.autograd.Function):
    """Zeros beyond each image's extent, in x itself. Nobody reads what was there, nor its gradient,
    so that what autograd keeps of x stays right; ``data`` spares a copy of the map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extents: list[tuple[int, int]]) -> Tensor:
        ctx.extents = extents
        _fill(x.data, extents, 0)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        _fill(grad, ctx.extents, 0)  # a convolution has just made it, for this alone
        return grad, None


class _RepeatEnds(torch.autograd.Function):
    """A copy of x whose last row and column of each image's extent are repeated beyond it. A copy,
    since the RPN's backward pass needs the zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extents: list[tuple[int, int]]) -> Tensor:
        ctx.extents = extents
        x = x.clone()
        for image, (h, w) in zip(x, extents, strict=True):
            image[:, h : h + 1, :w] = image[:, h - 1 : h, :w]
            image[:, : h + 1, w : w + 1] = image[:, : h + 1, w - 1 : w]
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        for image, (h, w) in zip(grad, ctx.extents, strict=True):
            if w < image.shape[2]:
                image[:, : h + 1, w - 1] += image[:, : h + 1, w]
            if h < image.shape[1]:
                image[:, h - 1, :w] += image[:, h, :w]
        _fill(grad, ctx.extents, 0)
        return grad, None
