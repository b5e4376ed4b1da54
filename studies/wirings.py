"""Wirings that the study compares with the package's: each of them leaves one thing out."""

from typing import Any

from torch import Tensor, nn

from dgnet_det.graph.wirings import PaperGraph, ResidualGraph


class UntrainedRouters(ResidualGraph):
    """Routers and thresholds stay as they start; γ learns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.routers.requires_grad_(False)
        self.thresholds.requires_grad_(False)


class StructureAlone(PaperGraph):
    """α ≡ 1, to be built with static edge weights: the residual network that the graph unrolls
    to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for bias in self.routers.parameters():
            nn.init.constant_(bias, 40.0)  # whose sigmoid is 1 in float32
        self.routers.requires_grad_(False)
        self.thresholds.requires_grad_(False)


class HalfOpen(PaperGraph):
    """α starts near 0.5."""

    router_start = 0.5


class StridedProjection(PaperGraph):
    """P is a 1×1 convolution with a stride, which does not look at three positions of four."""

    def _project(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return x if self.projection is None else self.projection(x)


# By the value of MODEL.DGNET.WIRING.
REDUCED = {
    "untrained-routers": UntrainedRouters,
    "structure-alone": StructureAlone,
    "half-open": HalfOpen,
    "strided-projection": StridedProjection,
}
