"""The page says what the numbers say; the one in docs/ is made from the numbers beside it."""

import json
from pathlib import Path
from typing import Any

from configs import ROOT
from studies.report import conclude, render, write_report


def test_tables(study: dict[str, Any]) -> None:
    page = render(study)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    name = "ResNet-18"
    assert [name, "plain", "81.00 ± 1.00", "31.00 ± 1.00", "62.00 ± 2.00"] in cells
    # 2 ± 4.303 · 1 / sqrt(3), and three equal differences.
    dynamic = ["+2.00 [-0.48, +4.48]", "no difference shown", "-2.00 [-2.00, -2.00]", "hurt"]
    assert [name, "dynamic, paper wiring − plain", *dynamic] in cells
    static = ["+0.00 [-2.48, +2.48]", "no difference shown", "+0.50 [+0.50, +0.50]", "helped"]
    assert [name, "static, paper wiring − plain", *static] in cells
    # 9 runs of 1200 s; 3 comparisons × 2 metrics.
    assert "took 3.0 hours" in page
    assert "Of 6 intervals" in page
    assert "trial" not in page


def test_conclusion_follows_the_intervals(study: dict[str, Any]) -> None:
    text = conclude(study)
    assert "plain network: hurt in some comparisons and helped in none.** Of 2" in text
    finding = "dynamic, paper wiring, hurt against plain, -2.00 [-2.00, -2.00] points."
    assert f"- ResNet-18, AP: {finding}" in text
    assert text.endswith("No difference is shown in any other comparison.")
    for run in study["runs"]:
        if run["arm"] == "dynamic-paper":
            run["AP"] += 4
    assert "plain network: helped in some comparisons and hurt in none.**" in conclude(study)
    for run in study["runs"]:
        run["AP"] = run["top1"] = 10.0 + run["seed"]
    assert "plain network: showed no difference.** Of 2 comparisons 0 helped" in conclude(study)
    assert "- " not in conclude(study)


def test_one_seed_and_a_trial_conclude_nothing(study: dict[str, Any], tmp_path: Path) -> None:
    one = study | {"seeds": [0], "scale": "tiny"}
    one["runs"] = [run for run in study["runs"] if run["seed"] == 0]
    assert conclude(one) == "One seed allows no conclusion."
    page = render(one)
    assert "figures mean nothing" in page
    assert "80.00 ± –" in page
    write_report(tmp_path, one)
    assert (tmp_path / "images/study.png").stat().st_size > 1000


def test_the_page_is_made_from_the_numbers() -> None:
    study = json.loads((ROOT / "docs/study.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/study.md").read_text(encoding="utf-8") == render(study)
    assert study["scale"] == "full"
