"""The candidate branches of a connection: a static network's block or nothing, copies of the block,
or those of a cell."""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from dgnet_det.errors import UserError
from dgnet_det.graph.stage import Block

SKIP = ("block", "identity")
CELL = ("sep3x3", "sep5x5", "dilated3x3", "pool3x3", "identity")
KERNELS = {"sep3x3": (3, 1), "sep5x5": (5, 1), "dilated3x3": (3, 2)}  # size, dilation


class SeparableConv(CNNBlockBase):
    """ReLU(shortcut + B(x)), where B is a depthwise convolution, norm, ReLU, a 1×1 convolution and
    norm; without the shortcut where it changes the shape."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: str,
        stride: int = 1,
        kernel_size: int = 3,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.depthwise = Conv2d(
            in_channels,
            in_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=in_channels,
            bias=False,
            norm=get_norm(norm, in_channels),
            activation=F.relu_,
        )
        self.pointwise = Conv2d(
            in_channels, out_channels, kernel_size=1, bias=False, norm=get_norm(norm, out_channels)
        )
        for conv in (self.depthwise, self.pointwise):
            weight_init.c2_msra_fill(conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉], a new tensor."""
        out = self.pointwise(self.depthwise(x))
        if self.stride == 1 and self.in_channels == self.out_channels:
            out = out + x
        return F.relu_(out)


class AveragePool(nn.Module):
    """The average over 3×3 positions."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class Cell(nn.Module):
    """The branches of one connection of a cell network, in the place of a static block. Each maps
    the output of a ReLU to the output of a ReLU."""

    stride = 1
    freeze = CNNBlockBase.freeze

    def __init__(self, channels: int, *, branches: Sequence[str], norm: str) -> None:
        """``branches`` are names out of :data:`CELL`."""
        super().__init__()
        self.in_channels = self.out_channels = channels
        self.branches = nn.ModuleDict()
        for name in branches:
            if name in KERNELS:
                size, dilation = KERNELS[name]
                self.branches[name] = SeparableConv(
                    channels, channels, norm=norm, kernel_size=size, dilation=dilation
                )
            elif name == "pool3x3":
                self.branches[name] = AveragePool()

    def keep(self, names: Sequence[str]) -> None:
        """Drop the branches that are not in ``names``."""
        self.branches = nn.ModuleDict({k: m for k, m in self.branches.items() if k in names})


def candidates(block: Block, names: Sequence[str]) -> list[str]:
    """The branches that a connection with this ``block`` gets, out of ``names``: where the block
    changes the shape, the block and its copies alone."""
    keeps_shape = block.stride == 1 and block.in_channels == block.out_channels
    return numbered(names) if keeps_shape or set(names) == {"block"} else ["block"]


def numbered(names: Sequence[str]) -> list[str]:
    """``names`` with repeated ones numbered: ``block``, ``block2``, ``block3``."""
    counts = [names[: k + 1].count(name) for k, name in enumerate(names)]
    return [name + str(n) * (n > 1) for name, n in zip(names, counts, strict=True)]


def check_branches(names: Sequence[str], *, cells: bool) -> None:
    """Check ``MODEL.DRNET.BRANCHES``.

    Raises:
        UserError: a network of cells, or a static one, has no such branches.
    """
    if cells:
        known = f"choose from {', '.join(CELL)}, each once"
        fits = bool(names) and set(names) <= set(CELL) and len(set(names)) == len(names)
    else:
        known = f"give {list(SKIP)}, or block several times"
        fits = tuple(names) == SKIP or set(names) == {"block"}
    if not fits:
        raise UserError(f"MODEL.DRNET.BRANCHES {list(names)}: {known}")
