"""Hooks of a training."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from dgnet_det.modeling.costs import Costs
from dgnet_det.modeling.observation import (
    AlphaSpread,
    ChoiceSpread,
    dgnet_of,
    dynamic_graphs,
    graph_statistics,
    record_decisions,
    routed_stages,
)
from dgnet_det.utils.curves import draw_curves, read_metrics
from dgnet_det.utils.pictures import save_figure

WRITER_PERIOD = 20  # iterations; Detectron2's own default
CHECKPOINTS_KEPT = 3  # the latest, beside the best and the final one
PICTURE = "training.png"  # in OUTPUT_DIR


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, whose best value so far is in the checkpoints and so outlives --resume."""

    def after_step(self) -> None:
        """As Detectron2's. The checkpoint of this step, which was saved before the evaluation, is
        saved anew with the new best value."""
        before, step = self.best_iter, self.trainer.iter
        super().after_step()
        saved = (step + 1) % self.trainer.cfg.SOLVER.CHECKPOINT_PERIOD == 0
        if saved and self.best_iter != before:
            checkpointer = self.trainer.checkpointer
            checkpointer.save(Path(checkpointer.get_checkpoint_file()).stem, iteration=step)

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


def writer_period(cfg: CfgNode) -> int:
    """Iterations between two writings of the metrics, so few that every evaluation is written."""
    return min(WRITER_PERIOD, cfg.TEST.EVAL_PERIOD or WRITER_PERIOD)


class RoutingSchedule(HookBase):
    """Tells routed stages the share of the training that is done, which sets their temperature and
    budget. It follows from the iteration, so resuming restores nothing."""

    def before_train(self) -> None:
        self.stages = routed_stages(self.trainer.model)

    def before_step(self) -> None:
        for stage in self.stages.values():
            stage.progress = self.trainer.iter / self.trainer.max_iter


class RoutingStatistics(HookBase):
    """Writes what the routers decide into the metrics. Register it before the evaluations, or their
    images are counted too. With gradient accumulation, the last micro-batch of each iteration
    counts.

    Of every graph, as ``wiring/res2.0/open_edges`` and so on: mean edge weight, shares of open
    edges and of absent nodes for the latest batch, and the spread of α over the images since the
    last time. Of routed stages, the figures of their choices as ``wiring/training/share`` and so
    on: with the noise of training, unlike ``wiring/share`` of an evaluation.
    """

    def __init__(self) -> None:
        self.listening = ExitStack()

    def before_train(self) -> None:
        model = self.trainer.model
        self.decisions = self.listening.enter_context(record_decisions(model))
        self.spreads = {name: AlphaSpread() for name in dynamic_graphs(model)}
        if routed_stages(model):
            self.spreads["training"] = ChoiceSpread(Costs.of(dgnet_of(model)))

    def after_step(self) -> None:
        """Add the images of this step. Log them if the metrics are written after it."""
        done = self.trainer.iter + 1
        logs = done % writer_period(self.trainer.cfg) == 0 or done == self.trainer.max_iter
        for name, spread in self.spreads.items():
            weights = self.decisions.get(name)  # of one graph; a spread of choices takes them all
            spread.add({name: weights} if weights else self.decisions)
            if logs:
                figures = {**(graph_statistics(weights) if weights else {}), **spread.pop()}
                for key, value in figures.items():
                    self.trainer.storage.put_scalar(f"wiring/{name}/{key}", value)

    def after_train(self) -> None:
        self.listening.close()


def gather_spread(spread: AlphaSpread) -> dict[str, dict[str, float]]:
    """The figures over the images of all processes, as ``{"wiring": ...}`` in the main process;
    empty in the others, and for a plain network."""
    for part in comm.gather(spread)[1:]:
        spread.merge(part)
    figures = spread.pop() if comm.is_main_process() else {}
    return {"wiring": figures} if figures else {}


class CurvesPicture(HookBase):
    """Draws the run's curves into ``OUTPUT_DIR`` when it ends, also by an error."""

    def after_train(self) -> None:
        """Draw the metrics, which hooks before this one have written."""
        folder = Path(self.trainer.cfg.OUTPUT_DIR)
        metrics = folder / "metrics.json"
        if metrics.exists() and (curves := read_metrics(metrics)):
            save_figure(draw_curves(curves), folder / PICTURE)
            logging.getLogger(__name__).info("Curves drawn to %s", folder / PICTURE)
