"""Runs of the tools in processes of their own, and the files of a training."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from helpers.configs import ROOT

# Without the variables of a launcher.
ENVIRONMENT = {
    k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE") and "SLURM" not in k
} | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run(*words: str, expected: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these words, which must end with the exit code ``expected``."""
    result = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == expected, result.stdout + result.stderr
    return result


def final_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder) / "model_final.pth", weights_only=True)["model"]


def assert_same_weights(folder: str | Path, other: str | Path) -> None:
    """Two trainings ended with the same weights, bit for bit."""
    ours, theirs = final_weights(folder), final_weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a training's ``metrics.json``."""
    return [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]


def evaluated(folder: str | Path, name: str) -> list[int]:
    """The iterations whose line has the metric ``name``."""
    return [line["iteration"] for line in metrics(folder) if name in line]
