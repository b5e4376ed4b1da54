"""Fashion-MNIST in several domains: fixed transforms, each with ten classes of its own."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import FashionMNIST

CLASSES = 10  # of each domain
SHIFT = 2  # pixels by which a training image is moved at most


def _checkerboard(x: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(n) // 2 for n in x.shape[-2:]), indexing="ij")
    return x * ((rows + columns) % 2)


def _blurred_and_grey(x: Tensor) -> Tensor:
    blurred = F.avg_pool2d(F.pad(x[:, None], (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return 0.3 + 0.4 * blurred[:, 0]


def _rows_shuffled(x: Tensor) -> Tensor:
    return x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))]


def _outlines(x: Tensor) -> Tensor:
    padded = F.pad(x[:, None], (0, 1, 0, 1), mode="replicate")[:, 0]
    down, right = padded[:, 1:, :-1] - x, padded[:, :-1, 1:] - x
    return (down.abs() + right.abs()).clamp(max=1)


def _quarters_swapped(x: Tensor) -> Tensor:
    return x.roll((x.shape[1] // 2, x.shape[2] // 2), dims=(1, 2))


# What makes a domain of images [n, H, W] between 0 and 1. A set of D domains has the first D.
DOMAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "inverted": lambda x: 1 - x,
    "rows shuffled": _rows_shuffled,
    "times a checkerboard": _checkerboard,
    "transposed": lambda x: x.transpose(1, 2),
    "blurred and grey": _blurred_and_grey,
    "outlines": _outlines,
    "quarters swapped": _quarters_swapped,
}


class Images(NamedTuple):
    """Images of several domains. Image n is of domain n modulo their number."""

    pixels: Tensor  # uint8, [n, H, W]
    mirrored: Tensor  # the same with left and right of the product exchanged
    labels: Tensor  # int64, [n]: 10 times the domain's number, plus the product's class
    num_domains: int


def make_images(products: FashionMNIST, num_domains: int, size: int) -> Images:
    """All of a split's products, each in one domain: so sets of few and of many domains have as
    many images.

    Args:
        products: 28 × 28 pixels.
        num_domains: 1 to 8.
        size: of the result, pixels.
    """
    x = F.interpolate(
        products.data[:, None].float() / 255, (size, size), mode="bilinear", antialias=True
    )[:, 0]
    return Images(
        _in_domains(x, num_domains),
        _in_domains(x.flip(2), num_domains),
        products.targets + CLASSES * (torch.arange(len(x)) % num_domains),
        num_domains,
    )


def _in_domains(x: Tensor, num_domains: int) -> Tensor:
    result = torch.empty(x.shape, dtype=torch.uint8)
    for d, transform in enumerate(list(DOMAINS.values())[:num_domains]):
        result[d::num_domains] = (255 * transform(x[d::num_domains])).round().to(torch.uint8)
    return result


class Batches:
    """Endless training batches, mirrored and shifted at random. They follow from the seed alone, so
    they are the same in every arm."""

    def __init__(self, images: Images, batch_size: int, seed: int) -> None:
        both = torch.stack([images.pixels, images.mirrored])
        padded = F.pad(both.float(), (SHIFT,) * 4, mode="replicate")
        self.padded, self.labels = padded.to(torch.uint8), images.labels
        self.size, self.batch_size = images.pixels.shape[1], batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The next images, uint8 [B, 1, H, W], and labels, [B]."""
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.labels), generator=self.generator)
        chosen, self.order = self.order.split([self.batch_size, len(self.order) - self.batch_size])
        mirrored = torch.randint(2, (self.batch_size,), generator=self.generator)
        top, left = torch.randint(
            2 * SHIFT + 1, (2, self.batch_size, 1), generator=self.generator
        ) + torch.arange(self.size)
        x = self.padded[
            mirrored[:, None, None], chosen[:, None, None], top[:, :, None], left[:, None, :]
        ]
        return x[:, None], self.labels[chosen]
