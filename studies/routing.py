"""Does it help to choose branches for every image, or would leaving them out for all do as well?

MobileNetV2 with torchvision's ImageNet weights becomes a Faster R-CNN on the tree crowns of `make
demo`: plain; routed, with the blocks to skip chosen for every image, at a row of budgets; and, for
each of these, pruned: the choice that is the most frequent in the training images is made for all,
and the network is trained anew, as long. Writes routing.md, routing.json and images/routing.png of
all runs that are finished. Finished runs are kept, interrupted ones go on where they stopped: so
several commands with other seeds may work on one --output. One run takes about four minutes.

Examples:
    python -m studies.routing --report docs
    python -m studies.routing --budgets 0.7 --seeds 0
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import arguments
import convert_checkpoint
import numpy as np
import torch
import train_net
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import nn

from dgnet_det.analysis.benchmark import run_and_time
from dgnet_det.analysis.counts import ImageCounter
from dgnet_det.checkpoint.checkpointer import write_checkpoint
from dgnet_det.data import CheckedDatasetMapper, load_cfg_with_data, spread_images
from dgnet_det.evaluation.interventions import intervene
from dgnet_det.export.predictor import load_predictor
from dgnet_det.export.pruning import count_branches
from dgnet_det.modeling.backbone.drnet import branch_name
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import dgnet_of
from dgnet_det.utils.environment import describe_environment
from dgnet_det.utils.files import write_json, written_whole
from studies import ROOT
from studies.one_run import train
from studies.tree_crowns import FOLDER, find_photographs, find_weights, write_tree_crowns

DETECTOR = "configs/Study/tree_crowns_detector.yaml"
BUDGETS = (1.0, 0.85, 0.7, 0.6)
TIMED_IMAGES = 20
REPEATS = 5
COUNTED_IMAGES = 100  # of the training's, for the most frequent choices
PAGE = """\
# Routing against pruning on tree crowns

Written on {date} by

    {command}

{table}

- *routed, B*: blocks are skipped for every image as its RouterNets choose; B is
  `MODEL.DRNET.BUDGET`, 1 stands for none. *pruned, B*: the most frequent choices of *routed, B* of
  the same seed, made for all images, from the ImageNet weights on trained as long.
- AP: per cent, mean ± standard deviation over the seeds. *most frequent*, *another's*: that of the
  routed detector with the most frequent choices of the test images for all of them, and with those
  of another image.
- *Mult.-adds*: what the backbone runs for a test image, in shares of the plain network's: the mean,
  and the standard deviation over the images. *Time*: of the backbone, in turns with a plain one.
- *Entropy*: of a connection's choice over the test images, in bits: 0 where all choose alike, 1
  where half of them do otherwise.
- Environment: {machine}.
"""
HEADERS = (
    "network", "seeds", "AP", "mult.-adds", "their spread", "time", "entropy", "AP, most frequent",
    "AP, another's",
)  # fmt: skip


class Run(NamedTuple):
    """One network and seed."""

    arm: str  # plain, routed or pruned
    budget: float
    seed: int

    @property
    def name(self) -> str:
        budget = "" if self.arm == "plain" else f"-{self.budget:g}"
        return f"{self.arm}{budget}-seed{self.seed}"


def overrides(run: Run, pruned: Sequence[str]) -> list[str]:
    """Of the detector's config."""
    common = ["SEED", str(run.seed), "MODEL.DGNET.WIRING", "residual"]
    if run.arm == "plain":
        return [*common, "MODEL.DGNET.EDGE_WEIGHTS", "none"]
    routed = [*common, "MODEL.BACKBONE.NAME", "build_drnet_fpn_backbone"]
    if run.arm == "pruned":
        return [*routed, "MODEL.DRNET.PRUNED_BRANCHES", str(list(pruned))]
    weight = "5.0" if run.budget < 1 else "0.0"
    return [
        *routed, "SOLVER.ROUTER_LR_FACTOR", "10.0",
        "MODEL.DRNET.BUDGET", str(run.budget), "MODEL.DRNET.BUDGET_WEIGHT", weight,
    ]  # fmt: skip


def perform(run: Run, output: Path, more: Sequence[str]) -> None:
    """Train and examine one network. The pruned one follows the routed one's choices."""
    folder = output / run.name
    result = folder / "run.json"
    if result.exists():
        print(f"{run.name}: finished before", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    pruned: list[str] = []
    if run.arm == "pruned":
        routed = output / run._replace(arm="routed").name / "run.json"
        pruned = json.loads(routed.read_text())["rarer_branches"]
    config, opts = str(ROOT / DETECTOR), [*overrides(run, pruned), *more]
    weights = folder / "backbone.pth"
    whole = [*overrides(run._replace(arm="plain"), ()), *more]
    convert_checkpoint.main([str(find_weights()), str(weights), "--config-file", config, *whole])
    if pruned:
        drop_absent(weights, build_model(load_cfg_with_data(config, opts)))
    command = ["--config-file", config, *opts, "MODEL.WEIGHTS", str(weights)]
    box = train(train_net.main, command, folder / "detector")["bbox"]
    figures = {name: box[name] or 0.0 for name in ("AP", "AP50", "AP75")}
    trained = ["MODEL.WEIGHTS", str(folder / "detector/model_final.pth")]
    figures |= examine(run, load_cfg_with_data(config, [*opts, *trained]))
    write_json(result, {**run._asdict(), **figures, "environment": describe_environment()})
    print(f"{run.name}: AP {figures['AP']:.2f}", flush=True)
    for path in [*folder.glob("detector/*.pth"), weights]:
        path.unlink()


def drop_absent(weights: Path, model: nn.Module) -> None:
    """Leave out of a checkpoint what a pruned model does not have."""
    checkpoint, names = torch.load(weights, weights_only=True), model.state_dict().keys()
    checkpoint["model"] = {n: x for n, x in checkpoint["model"].items() if n in names}
    write_checkpoint(checkpoint, weights)


@torch.no_grad()
def examine(run: Run, cfg: CfgNode) -> dict[str, Any]:
    """Multiply-adds, choices, their use, and the latency of a trained detector."""
    model, (dataset,) = load_predictor(cfg).model, cfg.DATASETS.TEST
    read = CheckedDatasetMapper(cfg, is_train=False)
    test, count = [read(x)["image"] for x in DatasetCatalog.get(dataset)], ImageCounter(model)
    figures: dict[str, Any] = {"macs": [count(image).ran.macs for image in test]}
    if run.arm != "plain":
        figures["latency"] = latency(model, cfg, test[:TIMED_IMAGES])
    if run.arm == "routed":
        images = spread_images(cfg.DATASETS.TRAIN[0], COUNTED_IMAGES)
        figures["rarer_branches"] = rarer_branches(model, [read(x)["image"] for x in images])
        result = intervene(model, cfg, dataset)
        figures |= {"choices": result["spread"], "ap": result["ap"]}
        figures["own_minus"] = result["own_minus"]
    return figures


def rarer_branches(model: nn.Module, images: Sequence[torch.Tensor]) -> list[str]:
    """All branches but the most frequent one of each connection, as ``MODEL.DRNET.PRUNED_BRANCHES``
    names them."""
    connections: dict[tuple[str, int], dict[str, int]] = {}
    for (name, j, branch), count in count_branches(model, images).items():
        connections.setdefault((name, j), {})[branch] = count
    return [
        branch_name(name, j, branch)
        for (name, j), counts in connections.items()
        for branch in counts
        if branch != max(counts, key=counts.__getitem__)
    ]


def latency(model: nn.Module, cfg: CfgNode, images: Sequence[torch.Tensor]) -> dict[str, float]:
    """Seconds of the backbone for an image, and of a plain one that takes turns with it: the median
    over the images, and the median of the ratios."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DGNET.EDGE_WEIGHTS = "build_dgnet_fpn_backbone", "none"
    plain = dgnet_of(optimize_for_inference(build_model(cfg)))
    backbone, device = dgnet_of(optimize_for_inference(model)), torch.device(cfg.MODEL.DEVICE)
    seconds = []
    for image in images:
        batch = model.preprocess_image([{"image": image}]).tensor  # type: ignore[operator]
        for _ in range(REPEATS):
            seconds.append([run_and_time(device, part, batch)[1] for part in (backbone, plain)])
    return {
        "seconds": statistics.median(own for own, _ in seconds),
        "plain_seconds": statistics.median(other for _, other in seconds),
        "ratio": statistics.median(own / other for own, other in seconds),
    }


def write_report(folder: Path, study: dict[str, Any]) -> None:
    """The table, the figures and the plot."""
    write_json(folder / "routing.json", study)
    with written_whole(folder / "routing.md") as temporary:
        temporary.write_text(render(study), encoding="utf-8")
    with written_whole(folder / "images/routing.png") as temporary:
        draw(study).savefig(temporary, dpi=120)


def render(study: dict[str, Any]) -> str:
    """The page, in Markdown."""
    rows, plain_macs = [], _plain_macs(study)
    for (arm, budget), runs in _by_arm(study).items():
        ap = [run["AP"] for run in runs]
        macs = [[x / plain_macs for x in run["macs"]] for run in runs]
        row = [arm if arm == "plain" else f"{arm}, {budget:g}", len(runs), _mean_and_deviation(ap)]
        row.append(f"{statistics.fmean(map(statistics.fmean, macs)):.1%}")
        row.append(f"{statistics.fmean(map(statistics.pstdev, macs)):.1%}")
        if arm == "plain":
            row.append("1")
        else:
            row.append(f"{statistics.fmean(run['latency']['ratio'] for run in runs):.2f}")
        if arm == "routed":
            row.append(f"{statistics.fmean(run['choices']['entropy'] for run in runs):.3f}")
            row += [f"{statistics.fmean(r['ap'][k] for r in runs):.2f}" for k in ("mean", "other")]
        row += ["–"] * (len(HEADERS) - len(row))
        rows.append(row)
    table = tabulate(rows, HEADERS, tablefmt="pipe", disable_numparse=True)
    environments = {
        ", ".join(f"{key} {value}" for key, value in run["environment"].items())
        for run in study["runs"]
    }
    machine = "; ".join(sorted(environments))
    return PAGE.format(table=table, machine=machine, command=study["command"], date=study["date"])


def draw(study: dict[str, Any]) -> Figure:
    """AP against the multiply-adds that ran; a small dot for each seed."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes, plain_macs = figure.subplots(), _plain_macs(study)
    by_arm = _by_arm(study)
    for color, name in zip(("0.2", "C0", "C1"), ("plain", "routed", "pruned"), strict=True):
        points = [
            np.array([(statistics.fmean(run["macs"]) / plain_macs, run["AP"]) for run in runs])
            for (arm, _), runs in by_arm.items()
            if arm == name
        ]
        if points:
            axes.plot(*np.array([p.mean(axis=0) for p in points]).T, "-o", color=color, label=name)
            axes.plot(*np.concatenate(points).T, ".", color=color, alpha=0.5)
    axes.set_xlabel("multiply-adds that the backbone ran, share of the plain network's")
    axes.set_ylabel("box AP on tree crowns, %")
    axes.grid(color="0.92")
    axes.legend(frameon=False)
    return figure


def _by_arm(study: dict[str, Any]) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """Runs by arm and budget: the plain one first, then from the largest budget down."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in sorted(study["runs"], key=lambda r: (r["arm"] != "plain", -r["budget"], r["arm"])):
        found.setdefault((run["arm"], run["budget"]), []).append(run)
    return found


def _plain_macs(study: dict[str, Any]) -> float:
    return statistics.fmean(
        x for run in study["runs"] if run["arm"] == "plain" for x in run["macs"]
    )


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, train, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=BUDGETS, metavar="SHARE",
        help="of the multiply-adds; 1: no budget (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="K", help="default: %(default)s"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/routing"), metavar="FOLDER",
        help="of the runs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="of the page (default: --output)"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of all configs"
    )
    args = parser.parse_args(argv)
    if not FOLDER.exists():
        write_tree_crowns(FOLDER, find_photographs())
    for seed in args.seeds:
        perform(Run("plain", 1.0, seed), args.output, args.opts)
        for budget in args.budgets:
            perform(Run("routed", budget, seed), args.output, args.opts)
            if budget < 1:
                perform(Run("pruned", budget, seed), args.output, args.opts)
    runs = [json.loads(path.read_text()) for path in sorted(args.output.glob("*/run.json"))]
    words = " ".join(sys.argv[1:] if argv is None else argv)
    study = {
        "command": f"python -m studies.routing {words}".strip(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": runs,
    }
    write_report(args.report or args.output, study)
    print(render(study))


if __name__ == "__main__":
    arguments.run(main)
