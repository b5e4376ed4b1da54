"""The study's page: a table for each experiment, and a plot."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from tabulate import tabulate

from dgnet_det.utils.files import written_whole
from studies.experiments import EXPERIMENTS

PAGE = """\
# The study: is dynamic wiring of use?

Arms see the same images in the same order, and each differs in one thing from the arm that it is
compared with. On {date} this page was written by

    {command}

{findings}

{sections}

## How to read the tables

- AP, AP50, AP75: per cent on the test images, mean ± standard deviation over the seeds. The last
  checkpoint counts; none is selected by its result.
- *Mult.-adds*: what the backbone does for a test image, closed edges left out; mean of 20 images.
- *Difference of AP*: paired by seed, with its 95 % confidence interval (Student's t), **bold**
  where it leaves out 0. Of the {num_intervals} on this page {num_by_chance:.1f} can be expected to
  do so by chance alone; with few seeds they are wide, and a small effect would not show.
- *Spread of α*: the standard deviation of an edge's weight over the test images, mean and largest
  of all edges. Routers that never learned have a spread, too.
- *Own − mean*, *own − another's*: the AP that is lost where every image gets the mean of all
  images' edge weights, or those of another image. The network uses what its routers decide in so
  far as these are above 0. *Top-1*: the same for the classifier that the detector comes from.
- A seed sets what is random at the start, the order of the images and their augmentation.
- Environment: {environments}.

The paper's own ablation (its Table 6, ImageNet top-1 of ResNet-50 / ResNet-101, as printed there):
no further edges 76.70 / 78.29, one learned weight per edge 77.00 / 78.64, weights for each image
78.00 / 79.68. Networks, images and schedules are far smaller here: nothing on this page confirms or
refutes those figures.
"""
PLOT = """\
![Differences of AP](images/study.png)

Dots are seeds, bars the 95 % confidence intervals of their mean."""
HEADERS = (
    "arm", "seeds", "AP", "AP50", "AP75", "mult.-adds, M", "difference of AP", "spread of α",
    "own − mean", "own − another's", "top-1: own − mean", "own − another's",
)  # fmt: skip
Runs = dict[int, dict[str, Any]]  # of an arm, by seed


class Interval(NamedTuple):
    """The mean of a figure over seeds, and half the width of its 95 % confidence interval by
    Student's t: NaN for one seed."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """The interval of one value per seed."""
        quantile = stats.t.ppf(0.975, len(values) - 1)
        half = quantile * stats.sem(values) if len(values) > 1 else np.nan
        return cls(float(np.mean(values)), float(half))

    @property
    def leaves_out_0(self) -> bool:
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        low, high = self.mean - self.half, self.mean + self.half
        text = f"{self.mean:+.2f}" + ("" if np.isnan(low) else f" [{low:+.2f}, {high:+.2f}]")
        return f"**{text}**" if self.leaves_out_0 else text


def write_report(folder: Path, study: dict[str, Any]) -> None:
    """Write ``study.md`` and, of what was run, ``images/study.png`` into ``folder``. ``study`` is
    the content of study.json."""
    with written_whole(folder / "study.md") as temporary:
        temporary.write_text(render(study), encoding="utf-8")
    if study["runs"]:
        with written_whole(folder / "images/study.png") as temporary:
            draw(study).savefig(temporary, dpi=120)


def render(study: dict[str, Any]) -> str:
    """The page, in Markdown."""
    findings, sections, num_intervals = [], [], 0
    for key, arms in _by_arm(study).items():
        experiment, rows = EXPERIMENTS[key], []
        for arm, runs in arms.items():
            name, against = experiment.arms[arm].name, experiment.arms[experiment.arms[arm].against]
            values = _differences(key, arm, arms)
            difference = f"{Interval.of(values)} to *{against.name}*" if values else "–"
            num_intervals += bool(values)
            if values and Interval.of(values).leaves_out_0:
                findings.append(f"- {experiment.title}: *{name}*, {difference}.")
            rows.append([name, len(runs), *_cells(list(runs.values()), difference)])
        table = tabulate(rows, HEADERS, tablefmt="pipe", disable_numparse=True)
        sections.append(f"## {experiment.title}\n\n{fill(experiment.method, 100)}\n\n{table}")
    runs_of_all = study["runs"]
    if not_run := _not_run(study):
        sections.append("\n".join(["Not run yet:\n", *not_run]))
    if any(run["scale"] != "full" for run in runs_of_all):
        findings = ["**A trial of the command. Its figures mean nothing.**"]
    elif num_intervals:
        findings = ["Differences whose intervals leave out 0:\n", *(findings or ["- none."])]
    return PAGE.format(
        command=study["command"],
        date=study["date"],
        findings="\n".join(findings),
        sections="\n\n".join([*sections, PLOT] if runs_of_all else sections),
        num_intervals=num_intervals,
        num_by_chance=0.05 * num_intervals,
        environments="; ".join(dict.fromkeys(run["environment"] for run in runs_of_all)) or "–",
    )


def draw(study: dict[str, Any]) -> Figure:
    """The differences of AP, one panel for each experiment."""
    by_arm = _by_arm(study)
    figure = Figure(figsize=(8, 1 + 0.4 * sum(map(len, by_arm.values()))), layout="constrained")
    heights = [len(arms) for arms in by_arm.values()]
    panels = figure.subplots(len(by_arm), squeeze=False, height_ratios=heights)[:, 0]
    for panel, (key, arms) in zip(panels, by_arm.items(), strict=True):
        experiment = EXPERIMENTS[key]
        labels: list[str] = []
        panel.axvline(0, color="0.6", linewidth=1)
        for arm in arms:
            if values := _differences(key, arm, arms):
                mean, half = Interval.of(values)
                row = len(labels)
                panel.errorbar(mean, row, xerr=np.nan_to_num(half), fmt="D", color="C0", capsize=3)
                panel.plot(values, [row] * len(values), ".", color="C0", alpha=0.5)
                against = experiment.arms[experiment.arms[arm].against].name
                labels.append(f"{experiment.arms[arm].name}\nto {against}")
        panel.set_yticks(range(len(labels)), labels, fontsize=7)
        panel.set_ylim(len(labels) - 0.5, -0.5)
        panel.set_title(experiment.title, fontsize=9)
        panel.set_xlabel("difference of AP, points")
    return figure


def _by_arm(study: dict[str, Any]) -> dict[str, dict[str, Runs]]:
    """What was run by experiment and arm, in the order of ``EXPERIMENTS``."""
    found: dict[str, dict[str, Runs]] = {}
    for key, experiment in EXPERIMENTS.items():
        for arm in experiment.arms:
            runs = [r for r in study["runs"] if (r["experiment"], r["arm"]) == (key, arm)]
            if runs:
                found.setdefault(key, {})[arm] = {run["seed"]: run for run in runs}
    return found


def _not_run(study: dict[str, Any]) -> list[str]:
    """The arms without a run, a line for each experiment that has any."""
    run = {(r["experiment"], r["arm"]) for r in study["runs"]}
    names = {
        experiment.title: [arm.name for k, arm in experiment.arms.items() if (key, k) not in run]
        for key, experiment in EXPERIMENTS.items()
    }
    return [f"- {title}: *{'*, *'.join(missing)}*" for title, missing in names.items() if missing]


def _differences(key: str, arm: str, arms: dict[str, Runs]) -> list[float]:
    """The differences of an arm's AP to that of the arm it goes against, for the seeds that both
    have."""
    against = EXPERIMENTS[key].arms[arm].against
    runs, others = arms[arm], arms.get(against, {}) if against != arm else {}
    return [runs[seed]["AP"] - others[seed]["AP"] for seed in sorted(runs.keys() & others.keys())]


def _cells(runs: list[dict[str, Any]], difference: str) -> list[str]:
    def over_seeds(name: str) -> list[float]:
        return [run[name] for run in runs if name in run]

    cells = []
    for name in ("AP", "AP50", "AP75"):
        deviation = f" ± {np.std(over_seeds(name), ddof=1):.2f}" if len(runs) > 1 else ""
        cells.append(f"{np.mean(over_seeds(name)):.2f}{deviation}")
    cells.append(f"{np.mean(over_seeds('macs')) / 1e6:.1f}")
    spread, largest = over_seeds("alpha_std"), over_seeds("alpha_std_max")
    cells += [difference, f"{np.mean(spread):.3f}, {np.mean(largest):.3f}" if spread else "–"]
    for kind in ("own_minus", "top1_own_minus"):
        for name in ("mean", "other"):
            values = over_seeds(f"{kind}_{name}")
            cells.append(str(Interval.of(values)) if values else "–")
    return cells
