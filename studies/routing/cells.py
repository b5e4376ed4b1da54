"""A network of cells on Fashion-MNIST."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import train_classifier
from torch.utils.data import Subset

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.config import load_cfg
from dgnet_det.data.classification import build_test_loader, fashion_mnist
from dgnet_det.modeling.classifier import build_classifier
from dgnet_det.modeling.costs import Costs
from studies import ROOT
from studies.one_run import train, without_own_outputs
from studies.routing import Run, rarer_branches

CLASSIFIER = "configs/Study/cells_classifier.yaml"
BUDGETS = (0.8, 0.6, 0.4)
COUNTED_IMAGES = 2000  # of the training's, for the most frequent choices


def write_data() -> None:
    """Fashion-MNIST, unless it is there."""
    fashion_mnist("train")


def overrides(run: Run, pruned: Sequence[str]) -> list[str]:
    """Of the classifier's config."""
    common = ["SEED", str(run.seed)]
    if run.arm == "routed":
        return [*common, "MODEL.DRNET.BUDGET", str(run.budget)]
    common += ["MODEL.DRNET.BUDGET_WEIGHT", "0.0"]
    if run.arm == "plain":
        return [*common, "MODEL.DRNET.BRANCHES", "['sep5x5']"]
    return [*common, "MODEL.DRNET.PRUNED_BRANCHES", str(list(pruned))]


def perform(run: Run, folder: Path, pruned: Sequence[str], more: Sequence[str]) -> dict[str, Any]:
    """Train and examine one network; its figures."""
    config, opts = str(ROOT / CLASSIFIER), [*overrides(run, pruned), *more]
    output = folder / "classifier"
    trained = train(train_classifier.main, ["--config-file", config, *opts], output)
    cfg = load_cfg(config, opts)
    model = build_classifier(cfg).to(cfg.MODEL.DEVICE).eval()
    DGNetCheckpointer(model).load(str(output / "model_final.pth"))
    costs, choices = Costs.of(model.backbone), trained.get("wiring", {})
    figures: dict[str, Any] = {
        "top1": trained["top1"],
        "macs": costs.whole * choices.get("share", 1.0),
        "macs_deviation": costs.whole * choices.get("share_std", 0.0),
    }
    if run.arm == "routed":
        train_set, test_set = map(fashion_mnist, ("train", "val"))
        every = len(train_set) // COUNTED_IMAGES or 1
        some = build_test_loader(cfg, Subset(train_set, range(0, len(train_set), every)))
        figures["rarer_branches"] = rarer_branches(model, (x.to(cfg.MODEL.DEVICE) for x, _ in some))
        figures["entropy"] = choices["entropy"]
        figures["by_choices"] = without_own_outputs(model, build_test_loader(cfg, test_set), cfg)
    return figures
