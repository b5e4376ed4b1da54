"""The study's page: the picture of gain against diversity, and a table for each set of images."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from tabulate import tabulate

from dgnet_det.utils.files import written_whole
from studies import mixed_kinds
from studies.experiments import DOMAINS, EPOCHS, EXPERIMENTS

TEXT = Path(__file__).parent / "page.md"
NOT_RUN = "–"
# What takes the place of an image's own edge weights, by its name in the results.
INSTEAD = {
    "domain_mean": "its domain's mean",
    "mean": "the mean of all",
    "same_domain": "another's of its domain",
    "other_domain": "one of another domain",
}
# The arm that each arm is compared with beside plain.
TWIN = {"dynamic": "static", "residual-dynamic": "residual-static"}
LEFT_OUT = 100  # the seed of the choices that were made before the study
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
    sets = by_set(study)
    environments = [run["environment"] for run in study["runs"]]
    return TEXT.read_text(encoding="utf-8").format(
        command=study["command"],
        date=study["date"],
        outcome=fill(f"- **Came out.** {outcome(sets)}", 120, subsequent_indent="  "),
        domains="\n\n".join(_domains_section(key, arms) for key, arms in sets.items()),
        missing=_missing(sets),
        choices=_choices(study),
        kinds=_kinds_table([run for run in study["runs"] if run["experiment"] == "kinds"]),
        environments="; ".join(
            dict.fromkeys(
                f"{e['CPU']}, Python {e['Python']}, PyTorch {e['PyTorch']}" for e in environments
            )
        )
        or NOT_RUN,
    )


def by_set(study: dict[str, Any]) -> dict[tuple[int, int], dict[str, Runs]]:
    """The runs of ``domains`` by number of domains and epochs, most first, and by arm."""
    runs = [r for r in study["runs"] if r["experiment"] == "domains" and r["seed"] != LEFT_OUT]
    keys = sorted({(run["num_domains"], run["epochs"]) for run in runs}, reverse=True)
    found: dict[tuple[int, int], dict[str, Runs]] = {}
    for key in keys:
        for arm in EXPERIMENTS["domains"]:
            of_arm = {
                run["seed"]: run
                for run in runs
                if run["arm"] == arm and (run["num_domains"], run["epochs"]) == key
            }
            if of_arm:
                found.setdefault(key, {})[arm] = of_arm
    return found


def differences(arms: dict[str, Runs], arm: str, other: str) -> list[float]:
    """Top-1 of an arm less that of another, of the seeds that both have."""
    runs, others = arms.get(arm, {}), arms.get(other, {})
    return [runs[seed]["top1"] - others[seed]["top1"] for seed in sorted(runs.keys() & others)]


def outcome(sets: dict[tuple[int, int], dict[str, Runs]]) -> str:
    """What came out with the most domains: all arms at the length with the most seeds, the dynamic
    one at the other lengths."""
    if not sets:
        return "Nothing has been run yet."
    most = max(domains for domains, _ in sets)
    _, key = max((len(arms.get("dynamic", {})), k) for k, arms in sets.items() if k[0] == most)
    arms, parts = sets[key], []
    for arm, other, text in (
        ("dynamic", "static", "dynamic edge weights score {} points of top-1 to static ones"),
        ("dynamic", "plain", "{} to the plain network"),
        ("static", "plain", "static ones {} to the plain network"),
        ("structure", "plain", "the same graph without routers (α ≡ 1) {} to the plain network"),
        ("se", "plain", "squeeze-and-excitation, the yardstick, {}"),
    ):
        if values := differences(arms, arm, other):
            parts.append(text.format(_with_seeds(values)))
    if not parts:
        return "No two arms can be compared yet."
    sentences = [f"With {_name(key)}, {'; '.join(parts)}."]
    for other in ("static", "plain"):
        elsewhere = [
            f"with {_name(k)} {_with_seeds(values)}"
            for k in sets
            if k[0] == most and k != key and (values := differences(sets[k], "dynamic", other))
        ]
        if elsewhere:
            sentences.append(f"Dynamic to {other} {'; '.join(elsewhere)}.")
    return " ".join(sentences)


def _name(key: tuple[int, int]) -> str:
    domains, epochs = key
    return f"{domains} domain{'s' * (domains > 1)}, {epochs} epochs"


def _with_seeds(values: Sequence[float]) -> str:
    return f"{Interval.of(values)} ({len(values)} seed{'s' * (len(values) > 1)})"


def _domains_section(key: tuple[int, int], arms: dict[str, Runs]) -> str:
    rows = []
    for arm, runs in arms.items():
        plain = differences(arms, arm, "plain") if arm != "plain" else []
        twin = differences(arms, arm, TWIN[arm]) if arm in TWIN else []
        cells = [_interval(plain), _interval(twin), _spread(runs.values())]
        for kind in INSTEAD:
            cells.append(_interval(_values(runs.values(), f"own_minus_{kind}")))
        score = _score(_values(runs.values(), "top1"))
        rows.append([EXPERIMENTS["domains"][arm], len(runs), score, *cells])
    headers = (
        "arm", "seeds", "top-1", "to plain", "to static", "spread of α: between, within domains",
        *(f"own − {name}" for name in INSTEAD.values()),
    )  # fmt: skip
    return f"### {_name(key)}\n\n{tabulate(rows, headers, tablefmt='pipe', disable_numparse=True)}"


def _missing(sets: dict[tuple[int, int], dict[str, Runs]]) -> str:
    """The sets of which nothing was run."""
    missing = [(d, e) for e in EPOCHS for d in DOMAINS if (d, e) not in sets]
    names = [f"{d} domain{'s' * (d > 1)} for {e} epochs" for d, e in missing]
    return fill(f"Not run: {'; '.join(names)}.", 120) if names else ""


def _choices(study: dict[str, Any]) -> str:
    """The runs of the seed that is left out."""
    rows = [
        [
            EXPERIMENTS["domains"][run["arm"]], f"{run['top1']:.2f}", _spread([run]),
            *(f"{run[f'own_minus_{kind}']:+.2f}" for kind in INSTEAD),
        ]
        for arm in EXPERIMENTS["domains"]
        for run in study["runs"]
        if run["experiment"] == "domains" and run["seed"] == LEFT_OUT and run["arm"] == arm
    ]  # fmt: skip
    headers = ("arm", "top-1", "spread of α", *(f"own − {name}" for name in INSTEAD.values()))
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True) if rows else NOT_RUN


def _kinds_table(runs: list[dict[str, Any]]) -> str:
    rows = []
    for arm, name in EXPERIMENTS["kinds"].items():
        of_arm = [run for run in runs if run["arm"] == arm]
        if not of_arm:
            rows.append([name, 0, *[NOT_RUN] * (3 + len(mixed_kinds.KINDS))])
            continue
        kinds = [[run["AP_by_kind"][kind] for run in of_arm] for kind in mixed_kinds.KINDS]
        used = [
            [r["own_minus"][k]["value"] for r in of_arm if "own_minus" in r]
            for k in ("mean", "other")
        ]
        rows.append(
            [
                name,
                len(of_arm),
                _score(_values(of_arm, "AP")),
                *map(_score, kinds),
                *map(_interval, used),
            ]
        )
    headers = ("arm", "seeds", "AP", *mixed_kinds.KINDS, "own − mean", "own − another's")
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def draw(study: dict[str, Any]) -> Figure:
    """Gain against the number of domains, a line for each length; beside it what is lost with
    other edge weights."""
    sets = by_set(study)
    figure = Figure(figsize=(10, 4), layout="constrained")
    gain, lost = figure.subplots(1, 2)
    lengths = sorted({epochs for _, epochs in sets})
    for color, other in (("C0", "static"), ("C1", "plain")):
        for k, epochs in enumerate(lengths):
            points = {
                domains: values
                for (domains, e), arms in sorted(sets.items())
                if e == epochs and (values := differences(arms, "dynamic", other))
            }
            label = f"dynamic − {other}, {epochs} epochs"
            if points:
                _draw_line(gain, points, color, k, label)
    gain.axhline(0, color="0.6", linewidth=1)
    gain.set(xscale="log", xlabel="number of domains", ylabel="difference of top-1, points")
    gain.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    gain.set_xlim(0.8, 11)
    gain.minorticks_off()
    gain.set_title("Gain against diversity", fontsize=10)
    if gain.get_legend_handles_labels()[0]:
        gain.legend(fontsize=7)
    _draw_lost(lost, sets)
    return figure


def _draw_line(axes: Axes, points: dict[int, list[float]], color: str, k: int, label: str) -> None:
    # Bars must not hide each other.
    x = np.array(list(points)) * (1.03 if color == "C1" else 0.97) * 1.1**k
    intervals = [Interval.of(values) for values in points.values()]
    # With two seeds the interval is 13 standard errors wide to each side: it would hide the rest.
    half = [i.half if len(v) > 2 else 0 for i, v in zip(intervals, points.values(), strict=True)]
    axes.errorbar(
        x, [i.mean for i in intervals], yerr=half, color=color, marker="oDs^"[k % 4],
        linestyle=("-", "--", ":", "-.")[k % 4],
        capsize=3, label=label,
    )  # fmt: skip
    for place, values in zip(x, points.values(), strict=True):
        axes.plot([place] * len(values), values, ".", color=color, alpha=0.4)


def _draw_lost(axes: Axes, sets: dict[tuple[int, int], dict[str, Runs]]) -> None:
    shown = {key: arms["dynamic"].values() for key, arms in sets.items() if "dynamic" in arms}
    keys = sorted(shown, key=lambda key: (key[1], key[0]))
    for k, (kind, name) in enumerate(INSTEAD.items()):
        values = [_values(shown[key], f"own_minus_{kind}") for key in keys]
        heights = [float(np.mean(v)) if v else 0.0 for v in values]
        axes.bar(np.arange(len(keys)) + 0.2 * k - 0.3, heights, 0.2, label=name)
    labels = [f"{domains} domain{'s' * (domains > 1)}\n{epochs} epochs" for domains, epochs in keys]
    axes.set_xticks(range(len(keys)), labels, fontsize=7)
    axes.set_ylabel("own − other weights: top-1, points")
    axes.set_title("Dynamic: what other edge weights cost", fontsize=10)
    axes.legend(fontsize=7)


def _values(runs: Iterable[dict[str, Any]], name: str) -> list[float]:
    return [run[name] for run in runs if name in run]


def _score(values: Sequence[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{deviation}"


def _interval(values: Sequence[float]) -> str:
    return str(Interval.of(values)) if values else NOT_RUN


def _spread(runs: Iterable[dict[str, Any]]) -> str:
    """Of networks whose edge weights differ between images."""
    kept = [run for run in runs if "own_minus_mean" in run]
    if not kept:
        return NOT_RUN
    parts = ("", "_between", "_within")
    means = [float(np.mean(_values(kept, f"alpha_std{part}"))) for part in parts]
    return "{:.3f}: {:.3f}, {:.3f}".format(*means)
