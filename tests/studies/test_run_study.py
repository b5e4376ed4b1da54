"""The study: its networks, and a run from the command line."""

import json
from pathlib import Path

import pytest
import torch

from studies.domains import training
from studies.domains.networks import ARMS, build
from studies.experiments import Run
from studies.run_study import main, perform_all


def alpha(arm: str) -> torch.Tensor:
    """What the routers return for an image, [K]."""
    found: list[torch.Tensor] = []
    torch.manual_seed(0)
    model = build(arm, 10).eval()
    with training.router_hooks(model, lambda name, output: found.append(output)), torch.no_grad():
        model(torch.randint(0, 256, (1, 1, 16, 16)))
    return torch.cat(found, dim=1)[0]


def test_arms_change_what_they_say() -> None:
    assert alpha("structure").eq(1).all()
    start = alpha("dynamic")
    assert 0.3 < start.mean() < 0.7
    assert 0.95 < alpha("start-0.98").mean() < 1
    assert torch.allclose(alpha("doubled")[:3], 2 * start[:3])  # the first stage's node 0
    logits = torch.logit(start[:3])
    assert torch.allclose(torch.logit(alpha("sharp-4")[:3]), 4 * logits, atol=1e-5)
    assert not torch.allclose(alpha("normalised")[:3], start[:3])


def test_every_arm_learns() -> None:
    images = torch.randint(0, 256, (2, 1, 16, 16))
    for arm in ARMS:
        model = build(arm, 10)
        model(images).square().sum().backward()
        learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert all(p.grad is not None for p in learning.values()), arm
        assert any("routers" in n for n in learning) == (arm not in ("plain", "se", "structure"))
    assert sum("fc1" in name for name, _ in build("se", 10).named_parameters()) == 16


def test_from_the_command_line(
    products: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    size = ["--domains", "2", "--epochs", "4", "--seeds", "3", "--jobs", "1"]
    arguments = ["--experiments", "domains", "--arms", "dynamic", *size]
    main([*arguments, "--output", str(output)])
    assert "[1/1] domains/dynamic-2-domains-4-epochs-seed3" in capsys.readouterr().out
    study = json.loads((output / "study.json").read_text())
    (run,) = study["runs"]
    assert 0 <= run["top1"] <= 100
    assert len(run["top1_by_domain"]) == 2
    assert "own_minus_other_domain" in run
    assert "dynamic" in (output / "study.md").read_text()

    # Elsewhere, with the page's study.json alone.
    other = ["--output", str(tmp_path / "other"), "--report", str(output)]
    main([*arguments, *other])
    assert "1 of 1 runs are finished" in capsys.readouterr().out
    assert json.loads((output / "study.json").read_text())["runs"] == study["runs"]


def test_a_failed_run_is_named(tmp_path: Path) -> None:
    run = Run("domains", "no such arm", 0, 1, 1)
    assert perform_all([run], tmp_path, jobs=1) == [tmp_path / run.name / "log.txt"]
    assert "no such arm" in (tmp_path / run.name / "log.txt").read_text()
