"""The page on routing: a table and a plot for each experiment."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from dgnet_det.utils.files import write_json, written_whole

PAGE = """\
# Routing against pruning

Written on {date} by

    {command}

*Routed, B*: branches are chosen for every image by its RouterNets; B is `MODEL.DRNET.BUDGET`, 1
stands for none. *Pruned, B*: the most frequent choices of *routed, B* of the same seed, made for
all images and trained anew, as long.

{sections}

## How to read the tables

- The score is per cent, mean ± standard deviation over the seeds. *Most frequent*, *another's*,
  *another domain's*: that of the routed network with the most frequent choices of the test images
  for all of them, with those of another image (of the same domain, where there are domains), and
  with those of an image of another domain. *At random*: every connection's choices are shuffled
  over the images, so that they cost the same. The network uses what its routers see in so far as
  these are lower.
- *Mult.-adds*: what the backbone runs for a test image, in shares of the plain network's: the mean,
  and the standard deviation over the images. *Time*: of the backbone, in turns with a plain one.
- *Entropy*: what an image tells of a connection's weights, in bits: 0 where all weigh alike.
- Environment: {machine}.

![Score against multiply-adds](images/routing.png)

A small dot is one seed.
"""
Group = dict[tuple[str, float], list[dict[str, Any]]]  # runs by arm and budget


class Section(NamedTuple):
    """What the page says of an experiment."""

    title: str
    method: str
    score: str  # in the results
    score_name: str


SECTIONS = {
    "copies": Section(
        "Four copies of every block, one of which runs",
        "A ResNet-18 of width 16 learns eight domains of Fashion-MNIST, 16 × 16 pixels, 80 classes,"
        " 2,000 iterations of 128 images. *Plain* has one block where the routed network has four,"
        " and the same multiply-adds for an image.",
        "top1",
        "top-1",
    ),
    "long_copies": Section(
        "The same, trained 9,400 iterations",
        "20 epochs instead of 4.",
        "top1",
        "top-1",
    ),
    "cells": Section(
        "Cells",
        "A network of cells (sep3x3, sep5x5, dilated3x3, pool3x3, identity) learns the eight"
        " domains at 32 × 32 pixels, 2,000 iterations. *Plain* has sep5x5, the dearest branch,"
        " everywhere.",
        "top1",
        "top-1",
    ),
    "skip": Section(
        "Skipping blocks",
        "The same network and images. Five of its eight blocks can be skipped.",
        "top1",
        "top-1",
    ),
    "tree_crowns": Section(
        "Skipping blocks: MobileNetV2 on tree crowns",
        "MobileNetV2 with torchvision's ImageNet weights becomes a Faster R-CNN on the tiles of"
        " `make demo`, 400 iterations; pruned networks start from the same weights.",
        "AP",
        "AP",
    ),
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
    parts = []
    for name, runs in _by_experiment(study).items():
        section = SECTIONS[name]
        parts += [f"## {section.title}", fill(section.method, 100), _table(section, runs)]
    environments = {
        ", ".join(f"{key} {value}" for key, value in run["environment"].items() if key != "date")
        for run in study["runs"]
    }
    machine = "; ".join(sorted(environments))
    sections = "\n\n".join(parts)
    return PAGE.format(
        sections=sections, machine=machine, command=study["command"], date=study["date"]
    )


def draw(study: dict[str, Any]) -> Figure:
    """Score against the multiply-adds that ran."""
    experiments = _by_experiment(study)
    figure = Figure(figsize=(6.5 * len(experiments), 4.2), layout="constrained")
    all_axes = figure.subplots(1, len(experiments), squeeze=False)[0]
    for axes, (name, runs) in zip(all_axes, experiments.items(), strict=True):
        _draw(axes, SECTIONS[name], runs)
    return figure


def _table(section: Section, runs: Group) -> str:
    headers = (
        "network", "seeds", section.score_name, "mult.-adds", "their spread", "time", "entropy",
        "most frequent", "another's", "another domain's", "at random",
    )  # fmt: skip
    rows, plain_macs = [], _plain_macs(runs)
    for (arm, budget), of_arm in runs.items():
        row = [arm if arm == "plain" else f"{arm}, {budget:g}", len(of_arm)]
        row.append(_mean_and_deviation([run[section.score] for run in of_arm]))
        row += [f"{_mean(of_arm, key) / plain_macs:.1%}" for key in ("macs", "macs_deviation")]
        times = [run["latency"]["ratio"] for run in of_arm if "latency" in run]
        row.append(f"{statistics.fmean(times):.2f}" if times else "–")
        if arm == "routed":
            row.append(f"{_mean(of_arm, 'entropy'):.3f}")
            choices = [run["by_choices"] for run in of_arm]
            for kind in ("mean", "other", "other_domain", "random"):
                row.append(f"{_mean(choices, kind):.2f}" if kind in choices[0] else "–")
        rows.append(row + ["–"] * (len(headers) - len(row)))
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def _draw(axes: Axes, section: Section, runs: Group) -> None:
    plain_macs = _plain_macs(runs)
    for color, name in zip(("0.2", "C0", "C1"), ("plain", "routed", "pruned"), strict=True):
        points = [
            np.array([(run["macs"] / plain_macs, run[section.score]) for run in of_arm])
            for (arm, _), of_arm in runs.items()
            if arm == name
        ]
        if points:
            axes.plot(*np.array([p.mean(axis=0) for p in points]).T, "-o", color=color, label=name)
            axes.plot(*np.concatenate(points).T, ".", color=color, alpha=0.5)
    axes.set_xlim(0, 1.1)
    low, high = axes.get_ylim()
    middle = (low + high) / 2
    axes.set_ylim(min(low, middle - 1), max(high, middle + 1))  # noise must not fill the picture
    axes.set_title(section.title)
    axes.set_xlabel("multiply-adds that the backbone ran, share of the plain network's")
    axes.set_ylabel(f"{section.score_name}, %")
    axes.grid(color="0.92")
    axes.legend(frameon=False)


def _by_experiment(study: dict[str, Any]) -> dict[str, Group]:
    """Of the experiments that have a plain run: the plain one first, then from the largest budget
    down."""
    found: dict[str, Group] = {}
    for run in sorted(study["runs"], key=lambda r: (r["arm"] != "plain", -r["budget"], r["arm"])):
        group = found.setdefault(run["experiment"], {})
        group.setdefault((run["arm"], run["budget"]), []).append(run)
    return {name: found[name] for name in SECTIONS if ("plain", 1.0) in found.get(name, {})}


def _plain_macs(runs: Group) -> float:
    return _mean(runs["plain", 1.0], "macs")


def _mean(runs: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.fmean(run[key] for run in runs)


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"
