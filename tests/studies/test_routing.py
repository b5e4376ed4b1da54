"""The page on routing says what the runs say; every arm's detector builds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configs import ROOT

from dgnet_det.config import load_cfg
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dgnet_of, routed_stages
from studies.domains import training
from studies.routing import Run, domains, rarer_branches
from studies.routing.__main__ import main
from studies.routing.report import render, write_report
from studies.routing.tree_crowns import BUDGETS, DETECTOR, drop_absent, overrides


def build(arm: str, budget: float, pruned: list[str]) -> torch.nn.Module:
    run = Run("tree_crowns", arm, budget, 0)
    opts = [*overrides(run, pruned), "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    return build_model(load_cfg(str(ROOT / DETECTOR), opts)).eval()


def test_pruned_is_the_static_network_without_what_is_rarer(tmp_path: Path) -> None:
    routed = build("routed", BUDGETS[-1], [])
    stages = routed_stages(routed)
    (router,) = stages["res4.0"].routers.values()
    router.linear.bias.data.view(-1, 2)[1] = torch.tensor([0.0, 1.0])  # of connection 3
    rarer = rarer_branches(routed, [[{"image": torch.zeros(3, 64, 64)}]] * 2)
    assert "res4.0:3-block" in rarer
    assert "res4.0:2-identity" in rarer
    plain, pruned = build("plain", 1.0, []), build("pruned", 0.7, rarer)
    torch.save({"model": plain.state_dict()}, tmp_path / "x.pth")
    drop_absent(tmp_path / "x.pth", pruned)
    pruned.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True)["model"])
    plain.backbone.bottom_up.res4[0].nodes["3"] = torch.nn.Identity()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = dgnet_of(pruned)(image), dgnet_of(plain)(image)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def study() -> dict[str, Any]:
    def run(arm: str, budget: float, seed: int, ap: float, macs: float) -> dict[str, Any]:
        return {
            "experiment": "tree_crowns", "arm": arm, "budget": budget, "seed": seed, "AP": ap,
            "macs": macs, "macs_deviation": 10.0 * (arm == "routed"), "latency": {"ratio": 0.8},
            "environment": {"CPU": "a CPU"}, "entropy": 0.25,
            "by_choices": {"own": ap, "mean": ap - 1, "other": ap - 2},
        }  # fmt: skip

    runs = [run("plain", 1.0, seed, 18 + seed, 100.0) for seed in range(2)]
    del runs[0]["latency"], runs[1]["latency"]
    runs += [run("routed", 0.7, seed, 16 + seed, 60.0 + 20 * seed) for seed in range(2)]
    runs.append(run("pruned", 0.7, 0, 15, 70.0))
    return {"command": "python -m studies.routing", "date": "2000-01-01", "runs": runs}


def rows_of(page: str) -> dict[str, list[str]]:
    cells = [[x.strip() for x in line.split("|")[1:-1]] for line in page.splitlines()]
    return {row[0]: row[1:] for row in cells if row}


def test_table(study: dict[str, Any], tmp_path: Path) -> None:
    rows = rows_of(render(study))
    assert rows["plain"] == ["2", "18.50 ± 0.71", "100.0%", "0.0%", "–", "–", "–", "–", "–", "–"]
    routed = ["2", "16.50 ± 0.71", "70.0%", "10.0%", "0.80", "0.250", "15.50", "14.50", "–", "–"]
    assert rows["routed, 0.7"] == routed
    assert rows["pruned, 0.7"] == ["1", "15.00", "70.0%", "0.0%", "0.80", *["–"] * 5]
    write_report(tmp_path, study)
    assert (tmp_path / "images/routing.png").stat().st_size > 1000


@pytest.mark.usefixtures("products")
def test_domains_from_data_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = {name: s._replace(iterations=3) for name, s in domains.SETTINGS.items()}
    monkeypatch.setattr(domains, "SETTINGS", short)
    monkeypatch.setattr(training, "BATCH", 16)
    command = ["--experiments", "skip", "copies", "cells", "--seeds", "0", "--output", "runs"]
    main([*command, "--budgets", "0.7"])
    page = Path("runs/routing.md").read_text()
    rows = rows_of(page)
    assert set(rows) > {"plain", "routed, 0.7", "pruned, 0.7"}
    assert page.count("| routed, 0.7") == 3
    assert rows["plain"][2] == "100.0%"
    # What the page holds is not run again.
    for path in Path("runs").glob("*/*/run.json"):
        path.unlink()
    monkeypatch.setattr(domains, "perform", None)
    main([*command, "--budgets", "0.7"])
    assert rows_of(Path("runs/routing.md").read_text()) == rows
