"""The page says what the numbers say; the one in docs/ is made from the numbers beside it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.configs import ROOT

from studies.report import INSTEAD, LEFT_OUT, Interval, render, write_report


@pytest.fixture
def study() -> dict[str, Any]:
    """Three seeds. Top-1 differs from plain by 1, 2, 3 points (dynamic) and by -2 (static)."""
    top1 = {"plain": (70, 71, 72), "static": (68, 69, 70), "dynamic": (71, 73, 75)}
    environment = {"CPU": "a CPU", "Python": "3", "PyTorch": "2"}
    runs: list[dict[str, Any]] = [
        {
            "experiment": "domains", "arm": arm, "seed": seed, "num_domains": 8, "epochs": 6,
            "top1": top1[arm][seed], "environment": environment,
        }
        for seed in range(3)
        for arm in top1
    ]  # fmt: skip
    for run in runs:
        if run["arm"] == "dynamic":
            run |= {"alpha_std": 0.05, "alpha_std_between": 0.04, "alpha_std_within": 0.03}
            run |= {f"own_minus_{kind}": run["seed"] - 1.0 for kind in INSTEAD}
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


def rows_of(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]


def test_table(study: dict[str, Any]) -> None:
    page = render(study)
    assert "### 8 domains, 6 epochs" in page
    rows = rows_of(page)
    assert ["plain", "3", "71.00 ± 1.00", *["–"] * 7] in rows
    static = ["paper, static", "3", "69.00 ± 1.00", "**-2.00 [-2.00, -2.00]**", *["–"] * 6]
    assert static in rows
    assert [
        "paper, dynamic", "3", "73.00 ± 2.00", "+2.00 [-0.48, +4.48]", "**+4.00 [+1.52, +6.48]**",
        "0.050: 0.040, 0.030", *["+0.00 [-2.48, +2.48]"] * 4,
    ] in rows  # fmt: skip
    text = " ".join(page.split())
    assert "score **+4.00 [+1.52, +6.48]** (3 seeds) points of top-1 to static ones" in text
    assert [["plain", "0", *["–"] * 7]] == [r for r in rows if r[:2] == ["plain", "0"]]  # kinds


def test_seeds_are_paired_and_one_is_left_out(study: dict[str, Any], tmp_path: Path) -> None:
    """Of a study that is not finished, the seeds that both arms have are compared."""
    study["runs"] = study["runs"][:-2]  # the last seed has the plain network alone
    before = [row for row in rows_of(render(study)) if row[:1] == ["paper, dynamic"]]
    assert before[0][3] == "+1.50 [-4.85, +7.85]"
    study["runs"].append(study["runs"][2] | {"seed": LEFT_OUT, "top1": 0.0})
    after = [row for row in rows_of(render(study)) if row[:1] == ["paper, dynamic"]]
    assert after == [*before, ["paper, dynamic", "0.00", "0.050: 0.040, 0.030", *["-1.00"] * 4]]
    kinds = {"tree": 20.0, "nucleus": 30.0, "product": 40.0, "word": 50.0}
    run = {"experiment": "kinds", "arm": "none", "seed": 0, "AP": 35.0, "AP_by_kind": kinds}
    study["runs"].append(run | {"environment": study["runs"][0]["environment"]})
    row = ["plain", "1", "35.00", "20.00", "30.00", "40.00", "50.00", "–", "–"]
    assert row in rows_of(render(study))
    write_report(tmp_path, study)
    assert (tmp_path / "images/study.png").stat().st_size > 1000


def test_the_page_is_made_from_the_numbers() -> None:
    study = json.loads((ROOT / "docs/study.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/study.md").read_text(encoding="utf-8") == render(study)
