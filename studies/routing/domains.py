"""Small networks on eight domains of Fashion-MNIST: a narrow ResNet-18 that weighs copies of its
blocks, or may skip them, and a network of cells."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgnet_det.data.classification import fashion_mnist
from dgnet_det.drnet import stage
from dgnet_det.drnet.branches import CELL, SKIP
from dgnet_det.evaluation.interventions import router_hooks
from dgnet_det.modeling.backbone.drnet import branch_name, make_drnet
from dgnet_det.modeling.budget import BudgetLoss
from dgnet_det.modeling.classifier import ClassifierHead, DGNetClassifier
from dgnet_det.modeling.costs import Costs
from dgnet_det.modeling.observation import information, record_decisions, routed_stages
from studies.domains.data import CLASSES, Images, make_images
from studies.domains.training import fit
from studies.routing import Run

DOMAINS, WIDTH = 8, 16
TEST_BATCH = 500
DIFFERENCE = 1.0  # copies start as far apart as blocks that are drawn


class Setting(NamedTuple):
    """A network that routes, and its training."""

    family: str
    branches: Sequence[str]
    threshold: float
    budgets: Sequence[float]
    iterations: int = 2000
    size: int = 16  # of the images, in pixels

    def network(self) -> dict[str, Any]:
        """What :func:`.make_drnet` is told of the family's network."""
        if self.family == "cell":
            return {}
        return {"depth": 18, "stem_out_channels": WIDTH, "res2_out_channels": WIDTH}


COPIES = Setting("resnet", ["block"] * 4, threshold=0.5, budgets=(1.0,))
SETTINGS = {
    "skip": Setting("resnet", SKIP, threshold=0.1, budgets=(1.0, 0.7, 0.5, 0.35)),
    "copies": COPIES,
    "long_copies": COPIES._replace(iterations=9400),
    "cells": Setting("cell", CELL, threshold=0.1, budgets=(1.0, 0.7, 0.4), size=32),
}


def write_data() -> None:
    """Fashion-MNIST, unless it is there."""
    fashion_mnist("train")


def perform(run: Run, folder: Path, pruned: Sequence[str], more: Sequence[str]) -> dict[str, Any]:
    """Train and examine one network; its figures."""
    torch.manual_seed(run.seed)
    stage.DIFFERENCE = DIFFERENCE
    setting = SETTINGS[run.experiment]
    plain = ["sep5x5"] if setting.family == "cell" else ["block"]  # the dearest branch
    backbone = make_drnet(
        setting.family,
        branches=plain if run.arm == "plain" else setting.branches,
        threshold=setting.threshold,
        pruned_branches=pruned,
        norm="BN", out_features=["res5"], in_channels=1, **setting.network(),
    )  # fmt: skip
    head = ClassifierHead(backbone.output_shape()["res5"].channels, CLASSES * DOMAINS)
    model = DGNetClassifier(backbone, head, pixel_mean=[90.0], pixel_std=[90.0])
    train(model, run, make_images(fashion_mnist("train"), DOMAINS, setting.size))
    return examine(model, make_images(fashion_mnist("val"), DOMAINS, setting.size))


def train(model: DGNetClassifier, run: Run, images: Images) -> None:
    """Train a network; one with a budget pays for its multiply-adds."""
    stages = routed_stages(model)
    pays = run.arm == "routed" and run.budget < 1
    budget = BudgetLoss(model.backbone, weight=5.0, budget=run.budget) if pays else None

    def tell(progress: float) -> None:
        for routed in stages.values():
            routed.progress = progress

    fit(
        model,
        images,
        iterations=SETTINGS[run.experiment].iterations,
        seed=run.seed,
        before_step=tell,
        other_loss=budget or (lambda: 0.0),
    )


@torch.no_grad()
def examine(model: DGNetClassifier, images: Images) -> dict[str, Any]:
    """Top-1 and multiply-adds; of a network that routes, what its choices are good for."""
    model.eval()
    costs, top1 = Costs.of(model.backbone), _top1(model, images)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    with record_decisions(model) as choices:
        for x, _ in _batches(images):
            model(x)
            for name, of_stage in choices.items():
                parts[name].append(of_stage.weight.double())
    figures = {"top1": top1, "macs": costs.whole, "macs_deviation": 0.0}
    weights = {name: torch.cat(of_stage) for name, of_stage in parts.items()}
    if not weights:
        return figures
    share = costs.share({name: w.ne(0).double() for name, w in weights.items()})
    stages = routed_stages(model)
    return figures | {
        "macs": costs.whole * share.mean().item(),
        "macs_deviation": costs.whole * share.std(correction=0).item(),
        "entropy": torch.cat([information(w) for w in weights.values()]).mean().item(),
        "by_choices": {"own": top1, **with_other_choices(model, images)},
        "rarer_branches": [
            branch_name(name, str(j), branch)
            for name, w in weights.items()
            for j, row in zip(stages[name].connections, w.mean(dim=0), strict=True)
            for k, branch in enumerate(stages[name].columns)
            if k != int(row.argmax())
        ],
    }


def with_other_choices(model: DGNetClassifier, images: Images) -> dict[str, float]:
    """Top-1 with the most frequent choices for all images, with those of another image of the same
    domain and of another domain, and with choices at random: each connection's are shuffled over
    the images, so that they cost the same."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    with router_hooks(model, lambda name, own: parts[name].append(own)):
        _top1(model, images)
    chosen = {name: torch.cat(of_router) for name, of_router in parts.items()}
    n = torch.arange(len(images.labels))
    other_domain = (n + 1 + n // DOMAINS % (DOMAINS - 1)) % len(n)  # each in its turn
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda x: x.mean(dim=0).expand_as(x),
        "other": lambda x: x.roll(-DOMAINS, dims=0),
        "other_domain": lambda x: x[other_domain],
        "random": lambda x: torch.stack([c[torch.randperm(len(c))] for c in x.unbind(1)], dim=1),
    }
    top1 = {}
    for kind, change in changes.items():
        calls = {name: iter(change(x).split(TEST_BATCH)) for name, x in chosen.items()}
        with router_hooks(model, partial(_next_of, calls)):
            top1[kind] = _top1(model, images)
    return top1


def _next_of(calls: Mapping[str, Iterator[Tensor]], name: str, own: Tensor) -> Tensor:
    return next(calls[name])


def _top1(model: DGNetClassifier, images: Images) -> float:
    hits = [model(x).argmax(dim=1).eq(labels) for x, labels in _batches(images)]
    return 100 * torch.cat(hits).double().mean().item()


def _batches(images: Images) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(
        images.pixels[:, None].split(TEST_BATCH), images.labels.split(TEST_BATCH), strict=True
    )
