"""What a training does beside its steps."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, TrainerBase, default_writers, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from dgnet_det.modeling.observation import AlphaSpread, graph_statistics, record_edge_weights
from dgnet_det.utils.curves import draw_curves, read_metrics
from dgnet_det.utils.pictures import save_figure

WRITER_PERIOD = 20  # iterations; Detectron2's own default
CHECKPOINTS_KEPT = 3  # the latest, beside the best and the final one
PICTURE = "training.png"  # in OUTPUT_DIR


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's; the best value so far is in the checkpoints, so that it outlives --resume."""

    def state_dict(self) -> dict[str, Any]:
        """The best value and its iteration."""
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


def is_logged(trainer: TrainerBase) -> bool:
    """Whether the figures of the present iteration are written: each ``WRITER_PERIOD``-th, the
    last, and those of an evaluation."""
    done, period = trainer.iter + 1, trainer.cfg.TEST.EVAL_PERIOD
    is_evaluated = period > 0 and done % period == 0
    return is_evaluated or done % WRITER_PERIOD == 0 or done == trainer.max_iter


class MetricsWriter(HookBase):
    """Detectron2's writers to ``OUTPUT_DIR``. Unlike its own hook, this one lets no evaluation be
    overwritten by the next before it is written, and creates no file before the training starts."""

    writers: Sequence[EventWriter] = ()

    def before_train(self) -> None:
        """Open the files."""
        self.writers = default_writers(self.trainer.cfg.OUTPUT_DIR, self.trainer.max_iter)

    def after_step(self) -> None:
        """Write what is new."""
        if is_logged(self.trainer):
            for writer in self.writers:
                writer.write()

    def after_train(self) -> None:
        """Write the last evaluation."""
        for writer in self.writers:
            writer.write()
            writer.close()


class EdgeStatistics(HookBase):
    """What the routers of every graph decide, in the metrics: mean edge weight, shares of open
    edges and of absent nodes for the latest batch, and the spread of α over the images since the
    last time. It comes before evaluations, whose images these are not."""

    def __init__(self) -> None:
        self.listening = ExitStack()
        self.spreads: dict[str, AlphaSpread] = {}

    def before_train(self) -> None:
        """Listen to the graphs."""
        self.latest = self.listening.enter_context(record_edge_weights(self.trainer.model))

    def after_step(self) -> None:
        """Log as ``wiring/res2.0/open_edges`` and so on."""
        for name, weights in self.latest.items():
            spread = self.spreads.setdefault(name, AlphaSpread())
            spread.add({name: weights})
            if is_logged(self.trainer):
                for key, value in {**graph_statistics(weights), **spread.pop()}.items():
                    self.trainer.storage.put_scalar(f"wiring/{name}/{key}", value)

    def after_train(self) -> None:
        """Listen no more."""
        self.listening.close()


def gather_spread(spread: AlphaSpread) -> dict[str, dict[str, float]]:
    """The figures of all processes' images together, in the main process as ``{"wiring": ...}``;
    empty in the others, and where there are no graphs."""
    whole = AlphaSpread()
    for part in comm.gather(spread):
        whole.merge(part)
    figures = whole.pop()
    return {"wiring": figures} if figures else {}


class CurvesPicture(HookBase):
    """The run's curves as a picture in ``OUTPUT_DIR``, once it ends, also by an error."""

    def after_train(self) -> None:
        """Draw what the writers before this hook have written."""
        folder = Path(self.trainer.cfg.OUTPUT_DIR)
        metrics = folder / "metrics.json"
        if metrics.exists() and (curves := read_metrics(metrics)):
            save_figure(draw_curves(curves), folder / PICTURE)
            logging.getLogger(__name__).info("Curves drawn to %s", folder / PICTURE)
