"""The page says what the numbers say; the one in docs/ is made from the numbers beside it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from configs import ROOT
from studies.report import Interval, render, write_report


@pytest.fixture
def study() -> dict[str, Any]:
    """Three seeds. AP differs from plain by 1, 2, 3 points (dynamic) and by -2 (static)."""
    ap = {"plain": (30, 31, 32), "static": (28, 29, 30), "dynamic": (31, 33, 35)}
    runs = [
        {
            "experiment": "tree_crowns", "arm": arm, "seed": seed, "scale": "full",
            "AP": ap[arm][seed], "AP50": 2 * ap[arm][seed], "AP75": 10.0, "macs": 5.2e6,
            "environment": "a CPU",
        }
        for seed in range(3)
        for arm in ap
    ]  # fmt: skip
    for run in runs:
        if run["arm"] == "dynamic":
            spread = {"alpha_std": 0.05, "alpha_std_max": 0.1 * (run["seed"] + 1)}
            run |= {**spread, "own_minus_mean": 0.5, "own_minus_other": run["seed"] - 1.0}
    return {"command": "python -m studies.run_study", "date": "2000-01-01", "runs": runs}


def test_interval_by_hand() -> None:
    # Mean 2, deviation 1, t(0.975, 2) = 4.30265, so 4.30265 / sqrt(3) = 2.48414.
    mean, half = Interval.of([1.0, 2.0, 3.0])
    assert (mean, half) == (pytest.approx(2.0), pytest.approx(2.48414, abs=5e-6))
    assert str(Interval(2.0, 2.4842)) == "+2.00 [-0.48, +4.48]"
    assert str(Interval(-2.0, 1.0)) == "**-2.00 [-3.00, -1.00]**"
    one = Interval.of([4.0])
    assert math.isnan(one.half)
    assert str(one) == "+4.00"


def test_table(study: dict[str, Any]) -> None:
    page = render(study)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    assert ["plain", "3", "31.00 ± 1.00", "62.00 ± 2.00", "10.00 ± 0.00", "5.2", *["–"] * 6] in rows
    (static,) = [row for row in rows if row[:1] == ["residual, static"]]
    assert static[6:] == ["**-2.00 [-2.00, -2.00]** to *plain*", *["–"] * 5]
    (dynamic,) = [row for row in rows if row[:1] == ["residual, dynamic"]]
    assert dynamic[6:] == [
        "+2.00 [-0.48, +4.48] to *plain*", "0.050, 0.200", "**+0.50 [+0.50, +0.50]**",
        "+0.00 [-2.48, +2.48]", "–", "–",
    ]  # fmt: skip
    assert "*residual, static*, **-2.00 [-2.00, -2.00]** to *plain*." in page
    assert "Of the 2 on this page" in page
    assert "## Composed scenes" not in page
    assert "Not run yet:\n\n- Tree crowns: a fine-tuning as users do it: *residual, routers" in page


def test_seeds_are_paired(study: dict[str, Any], tmp_path: Path) -> None:
    """Of a study that is not finished, the seeds that both arms have are compared."""
    study["runs"] = study["runs"][:-2]  # the last seed has the plain network alone
    assert "| +1.50 [-4.85, +7.85] to *plain*" in render(study)
    write_report(tmp_path, study)
    assert (tmp_path / "images/study.png").stat().st_size > 1000


def test_a_trial_concludes_nothing(study: dict[str, Any]) -> None:
    study["runs"][0]["scale"] = "tiny"
    assert "figures mean nothing" in render(study)
    assert "leave out 0:" not in render(study)


def test_the_page_is_made_from_the_numbers() -> None:
    study = json.loads((ROOT / "docs/study.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/study.md").read_text(encoding="utf-8") == render(study)
