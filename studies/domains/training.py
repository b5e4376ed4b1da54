"""One run: train a network, and ask what its edge weights are good for."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_det.data.classification import fashion_mnist
from dgnet_det.engine.optimizer import get_optimizer_params
from dgnet_det.evaluation.interventions import router_hooks
from studies.domains.data import CLASSES, Batches, Images, make_images
from studies.domains.networks import ARMS, build

SIZE = 16
BATCH = 128
BASE_LR = 0.1
WEIGHT_DECAY = 5e-4
WARMUP = 0.05  # of the iterations
TEST_BATCH = 500


def run(arm: str, *, num_domains: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train one network; what it scores, with its images' edge weights and with others."""
    torch.manual_seed(seed)
    model = build(arm, CLASSES * num_domains)
    train(model, make_images(fashion_mnist("train"), num_domains, SIZE), arm, epochs, seed)
    return examine(model, make_images(fashion_mnist("val"), num_domains, SIZE))


def train(model: nn.Module, images: Images, arm: str, epochs: int, seed: int) -> None:
    """Train an arm's network for so many epochs."""
    iterations = epochs * len(images.labels) // min(BATCH, len(images.labels))
    fit(model, images, iterations=iterations, seed=seed, router_lr=ARMS[arm].router_lr)


def fit(
    model: nn.Module,
    images: Images,
    *,
    iterations: int,
    seed: int,
    router_lr: float = 1.0,
    before_step: Callable[[float], None] = lambda progress: None,
    other_loss: Callable[[], Tensor | float] = lambda: 0.0,
) -> None:
    """SGD under a cosine, the same for all networks.

    Args:
        model: a classifier.
        images: in batches of ``BATCH``, in an order by ``seed``.
        router_lr: the routers' learning rate, as a multiple of the other parameters'.
        before_step: called with the share of training that is done.
        other_loss: what is added to the loss after each forward pass.

    Raises:
        FloatingPointError: the loss of the last iteration is no number.
    """
    groups = get_optimizer_params(
        model, base_lr=BASE_LR, router_lr_factor=router_lr,
        weight_decay=WEIGHT_DECAY, weight_decay_norm=WEIGHT_DECAY,
    )  # fmt: skip
    optimizer = torch.optim.SGD(groups, lr=BASE_LR, momentum=0.9, fused=True)

    def factor(i: int) -> float:
        grown = min((i + 1) / (WARMUP * iterations), 1)
        return grown * (1 + math.cos(math.pi * i / iterations)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    batches = Batches(images, min(BATCH, len(images.labels)), seed)
    model.train()
    for i in range(iterations):
        before_step(i / iterations)
        x, labels = batches()
        loss = F.cross_entropy(model(x), labels) + other_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if not loss.isfinite():
        raise FloatingPointError("the loss is no number")


@torch.no_grad()
def examine(model: nn.Module, images: Images) -> dict[str, Any]:
    """Top-1 and, of a network with routers, the spread of its edge weights and its top-1 with
    others in their place."""
    model.eval()
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    with router_hooks(model, lambda name, output: outputs[name].append(output)):
        own = _hits(model, images)
    top1 = 100 * own.mean().item()
    by_domain = own.view(-1, images.num_domains).mean(dim=0).mul(100).tolist()
    figures: dict[str, Any] = {"top1": top1, "top1_by_domain": by_domain}
    alpha = {name: torch.cat(parts) for name, parts in outputs.items()}
    if all(values.eq(values[0]).all() for values in alpha.values()):  # the same for all images
        return figures
    figures |= spread(torch.cat(list(alpha.values()), dim=1), images.num_domains)
    for kind, rows in replacements(len(own), images.num_domains).items():
        replaced = {name: iter(rows(values).split(TEST_BATCH)) for name, values in alpha.items()}
        with router_hooks(model, partial(_next_of, replaced)):
            figures[f"own_minus_{kind}"] = top1 - 100 * _hits(model, images).mean().item()
    return figures


def replacements(count: int, num_domains: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name, what takes the place of ``count`` images' edge weights, [n, K] → [n, K]. Image n is
    of domain n modulo ``num_domains``."""
    n = torch.arange(count)
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "domain_mean": lambda x: torch.stack(
            [x[d::num_domains].mean(dim=0) for d in range(num_domains)]
        )[n % num_domains],
        "mean": lambda x: x.mean(dim=0).expand_as(x),
        "same_domain": lambda x: x.roll(-num_domains, dims=0),
    }
    if num_domains > 1:
        # Each of the other domains takes its turn.
        other = (n + 1 + n // num_domains % (num_domains - 1)) % count
        found["other_domain"] = lambda x: x[other]
    return found


def spread(alpha: Tensor, num_domains: int) -> dict[str, float]:
    """The standard deviation of edge weights [n, K] over the images, mean of all edges: in all, of
    the domains' means, and within a domain."""
    by_domain = torch.stack([alpha[d::num_domains] for d in range(num_domains)])  # [D, n / D, K]
    means = by_domain.mean(dim=1)
    within = by_domain.var(dim=1, correction=0).mean(dim=0).sqrt()
    return {
        "alpha_mean": alpha.mean().item(),
        "alpha_std": alpha.std(dim=0, correction=0).mean().item(),
        "alpha_std_between": means.std(dim=0, correction=0).mean().item(),
        "alpha_std_within": within.mean().item(),
    }


def _next_of(parts: Mapping[str, Iterator[Tensor]], name: str, output: Tensor) -> Tensor:
    return next(parts[name])


def _hits(model: nn.Module, images: Images) -> Tensor:
    parts = images.pixels[:, None].split(TEST_BATCH)
    predicted = torch.cat([model(x).argmax(dim=1) for x in parts])
    return predicted.eq(images.labels).double()
