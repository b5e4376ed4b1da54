"""What outlives --resume."""

import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import TrainerBase, hooks
from torch import nn

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.engine.hooks import BestCheckpointer


class Steps(TrainerBase):
    """Training that does nothing, evaluated and saved every second iteration, until it is
    stopped."""

    cfg = SimpleNamespace(SOLVER=SimpleNamespace(CHECKPOINT_PERIOD=2))

    def __init__(self, folder: Path, ap: list[float]) -> None:
        super().__init__()
        self.checkpointer = DGNetCheckpointer(
            nn.Linear(1, 1), str(folder), trainer=weakref.proxy(self)
        )
        self.best = BestCheckpointer(2, self.checkpointer, "bbox/AP")
        values, self.stop = iter(ap), 2 * len(ap)
        self.register_hooks(
            [
                hooks.PeriodicCheckpointer(self.checkpointer, 2),
                hooks.EvalHook(2, lambda: {"bbox": {"AP": next(values)}}),
                self.best,
            ]
        )

    def run_step(self) -> None:
        if self.iter == self.stop:
            raise KeyboardInterrupt


def test_the_last_checkpoint_has_the_best_value(tmp_path: Path) -> None:
    """Though it is saved before the evaluation."""
    with pytest.raises(KeyboardInterrupt):
        Steps(tmp_path, [10.0, 50.0]).train(0, 100)
    resumed = Steps(tmp_path, [])
    start = resumed.checkpointer.resume_or_load("", resume=True)["iteration"] + 1
    assert (start, resumed.best.best_metric) == (4, 50.0)
    best = torch.load(tmp_path / "model_best.pth")["iteration"]
    assert {path.name for path in tmp_path.glob("model_0*")} == {
        "model_0000001.pth", "model_0000003.pth"
    }  # fmt: skip
    assert best == 3
