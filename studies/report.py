"""The study's page: tables, conclusions by rule, and the plot."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

from dgnet_det.utils.files import written_whole
from studies.design import ARMS, NETWORKS, PLAIN
from studies.statistics import NO_DIFFERENCE, Difference, paired_difference, summarize

METRICS = {"top1": "top-1", "AP": "AP", "AP50": "AP50"}
# A verdict is given on these. AP50 goes along with AP.
JUDGED = ("top1", "AP")
# The second is subtracted from the first.
AGAINST_PLAIN = [(arm, PLAIN) for arm in ARMS if arm != PLAIN]
AGAINST_STATIC = [(f"dynamic-{wiring}", f"static-{wiring}") for wiring in ("paper", "residual")]

PAGE = """\
# A miniature study: does dynamic wiring help?

{scale_note}Arms, trained and evaluated under identical conditions: the plain network, and the paper
and the residual wiring, each with one learned weight per edge (*static*) and with weights that a
router sets for each image (*dynamic*, DG-Net). `{command}` ran them
and wrote this page on {date}.

## Conclusion

{conclusion}

## Results

Mean ± standard deviation over the seeds ({num_seeds}), in per cent. Top-1: Fashion-MNIST's test
split. AP, AP50: COCO's metrics on the composed test scenes.

{table}

Differences in points, paired by seed, with 95 % confidence intervals (Student's t). *Helped* and
*hurt* are said where the interval leaves out 0, *no difference shown* where it does not.

Against the plain network:

{against_plain}

Weights for each image against one weight per edge, in the same wiring:

{against_static}

Of {num_intervals} intervals at 95 %, {num_by_chance:.1f} can be expected to leave out 0 by chance
alone. With so few seeds the intervals are wide: a small effect would not show.

![Differences to the plain network](images/study.png)

Dots are seeds, bars the 95 % confidence intervals of the mean difference.

## What was done

- Networks: {networks}. `configs/Study` has their widths and all else that is fixed.
  Arms differ in `MODEL.DGNET.WIRING` and `EDGE_WEIGHTS` alone.
- Pretraining on Fashion-MNIST (28 × 28 pixels, scaled to 32): {classifier_schedule}; by
  `tools/train_classifier.py`.
- Fine-tuning as Faster R-CNN with FPN, from the backbone as `tools/convert_checkpoint.py` converts
  it: {detector_schedule}; by `tools/train_net.py`.
- Composed scenes, {num_train} to train and {num_test} to test: up to five product images of
  Fashion-MNIST, from its own training and test splits, pasted onto crops of photographs from
  `skimage.data`. They are not photographs. No photograph is behind scenes of both splits.
- A seed sets the start of the weights, the order of the data and its augmentation. Order and
  augmentation are the same in all arms. The last checkpoint counts; none is selected by its result.
- All runs together took {hours:.1f} hours of one thread each.
{environments}

The paper's own ablation (its Table 6, ImageNet top-1 of ResNet-50 / ResNet-101, as printed there):
no further edges 76.70 / 78.29, one learned weight per edge 77.00 / 78.64, weights for each image
78.00 / 79.68. Networks, images and schedules are far smaller here: nothing on this page confirms or
refutes those figures.
"""


def write_report(folder: Path, study: dict[str, Any]) -> None:
    """Write ``study.md`` and ``images/study.png`` into ``folder``.

    Args:
        folder: made if it is not there.
        study: what ``studies/run_study.py`` writes as ``study.json``.
    """
    with written_whole(folder / "study.md") as temporary:
        temporary.write_text(render(study), encoding="utf-8")
    with written_whole(folder / "images/study.png") as temporary:
        draw(study).savefig(temporary, dpi=120)


def render(study: dict[str, Any]) -> str:
    """The page, in Markdown."""
    num_intervals = len(_networks(study)) * len(JUDGED) * len(_comparisons(study))
    return PAGE.format(
        scale_note=""
        if study["scale"] == "full"
        else f"**Scale `{study['scale']}`: a trial of the command. Its figures mean nothing.**\n\n",
        command=study["command"],
        date=study["date"],
        conclusion=conclude(study),
        num_seeds=len(study["seeds"]),
        table=_results_table(study),
        against_plain=_difference_table(study, AGAINST_PLAIN),
        against_static=_difference_table(study, AGAINST_STATIC),
        num_intervals=num_intervals,
        num_by_chance=0.05 * num_intervals,
        networks=", ".join(f"narrow {NETWORKS[network]}" for network in _networks(study)),
        classifier_schedule=study["classifier_schedule"],
        detector_schedule=study["detector_schedule"],
        num_train=study["num_scenes"]["train"],
        num_test=study["num_scenes"]["test"],
        hours=sum(run["seconds"] for run in study["runs"]) / 3600,
        environments="\n".join(
            "- " + ", ".join(f"{name} {value}" for name, value in environment.items())
            for environment in study["environments"]
        ),
    )


def conclude(study: dict[str, Any]) -> str:
    """What the intervals allow to be said, in plain words."""
    if len(study["seeds"]) == 1:
        return "One seed allows no conclusion."
    dynamic = [pair for pair in AGAINST_PLAIN if pair[0].startswith("dynamic")]
    headlines = [
        _headline(study, "Dynamic wiring against the plain network", dynamic),
        _headline(study, "Weights for each image against one weight per edge", AGAINST_STATIC),
    ]
    findings = [
        f"- {NETWORKS[network]}, {METRICS[metric]}: {_label(pair[0])}, {difference.verdict} against"
        f" {_label(pair[1])}, {_signed(difference)} points."
        for pair in _comparisons(study)
        for network in _networks(study)
        for metric in JUDGED
        if (difference := _difference(study, network, pair, metric)).verdict != NO_DIFFERENCE
    ]
    findings.append("- No difference is shown in any other comparison." if findings else "")
    return "\n\n".join(filter(None, [*headlines, "\n".join(findings)]))


def draw(study: dict[str, Any]) -> Figure:
    """Differences to the plain network: one panel per metric."""
    pairs = [pair for pair in AGAINST_PLAIN if pair in _comparisons(study)]
    networks = _networks(study)
    figure = Figure(figsize=(9, 1.2 + 0.8 * max(len(pairs), 1)), layout="constrained")
    panels = figure.subplots(1, len(JUDGED), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, JUDGED, strict=True):
        panel.axvline(0, color="0.6", linewidth=1)
        for k, network in enumerate(networks):
            rows = [row + 0.18 * (2 * k - len(networks) + 1) for row in range(len(pairs))]
            differences = [_difference(study, network, pair, metric) for pair in pairs]
            panel.errorbar(
                [difference.mean for difference in differences],
                rows,
                xerr=[_drawable(difference) for difference in differences],
                fmt="D",
                color=f"C{k}",
                capsize=3,
                label=NETWORKS[network],
            )
            for row, (arm, baseline) in zip(rows, pairs, strict=True):
                ours, theirs = (_values(study, network, a, metric) for a in (arm, baseline))
                points = [a - b for a, b in zip(ours, theirs, strict=True)]
                panel.plot(points, [row] * len(points), ".", color=f"C{k}", alpha=0.5)
        panel.set_xlabel(f"{METRICS[metric]}, difference to plain in points")
    panels[0].set_yticks(range(len(pairs)), [_label(arm) for arm, _ in pairs])
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _headline(study: dict[str, Any], subject: str, pairs: Sequence[tuple[str, str]]) -> str:
    verdicts = Counter(
        _difference(study, network, pair, metric).verdict
        for pair in pairs
        if pair in _comparisons(study)
        for network in _networks(study)
        for metric in JUDGED
    )
    total = verdicts.total()
    if not total:
        return ""
    helped, hurt, undecided = (verdicts[v] for v in ("helped", "hurt", NO_DIFFERENCE))
    if helped and hurt:
        answer = "helped in some comparisons and hurt in others"
    elif helped:
        answer = "helped" if helped == total else "helped in some comparisons and hurt in none"
    elif hurt:
        answer = "hurt" if hurt == total else "hurt in some comparisons and helped in none"
    else:
        answer = "showed no difference"
    return (
        f"**{subject}: {answer}.** Of {total} comparisons {helped} helped, {hurt} hurt, and"
        f" {undecided} showed no difference."
    )


def _results_table(study: dict[str, Any]) -> str:
    rows = []
    for network in _networks(study):
        for arm in _arms(study):
            cells = []
            for metric in METRICS:
                summary = summarize(_values(study, network, arm, metric))
                std = "–" if math.isnan(summary.std) else f"{summary.std:.2f}"
                cells.append(f"{summary.mean:.2f} ± {std}")
            rows.append([NETWORKS[network], _label(arm), *cells])
    return _markdown(rows, ["network", "arm", *METRICS.values()])


def _difference_table(study: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> str:
    rows = []
    for network in _networks(study):
        for pair in pairs:
            if pair in _comparisons(study):
                cells = []
                for metric in JUDGED:
                    difference = _difference(study, network, pair, metric)
                    cells += [_signed(difference), difference.verdict]
                rows.append([NETWORKS[network], f"{_label(pair[0])} − {_label(pair[1])}", *cells])
    return _markdown(rows, ["network", "", "top-1", "", "AP", ""]) if rows else "Not run."


def _markdown(rows: list[list[str]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def _signed(difference: Difference) -> str:
    if math.isinf(difference.half_width):
        return f"{difference.mean:+.2f}"
    low, high = (difference.mean + k * difference.half_width for k in (-1, 1))
    return f"{difference.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _drawable(difference: Difference) -> float:
    return 0.0 if math.isinf(difference.half_width) else difference.half_width


def _label(arm: str) -> str:
    edge_weights, _, wiring = arm.partition("-")
    return f"{edge_weights}, {wiring} wiring" if wiring else edge_weights


def _networks(study: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(run["network"] for run in study["runs"]))


def _arms(study: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(run["arm"] for run in study["runs"]))


def _comparisons(study: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs of arms that were both run."""
    arms = set(_arms(study))
    return [pair for pair in AGAINST_PLAIN + AGAINST_STATIC if arms.issuperset(pair)]


def _values(study: dict[str, Any], network: str, arm: str, metric: str) -> list[float]:
    """One value per seed, in the order of the seeds."""
    found = {
        run["seed"]: run[metric]
        for run in study["runs"]
        if (run["network"], run["arm"]) == (network, arm)
    }
    return [found[seed] for seed in study["seeds"]]


def _difference(
    study: dict[str, Any], network: str, pair: tuple[str, str], metric: str
) -> Difference:
    ours, theirs = (_values(study, network, arm, metric) for arm in pair)
    return paired_difference(ours, theirs)
