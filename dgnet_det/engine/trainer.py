"""The training loop of detectors and classifiers, which differ in model, data and evaluation."""

import contextlib
import logging
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, default_writers, hooks
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.data.order import data_seed, mix_seeds
from dgnet_det.engine.hooks import (
    CHECKPOINTS_KEPT,
    BestCheckpointer,
    CurvesPicture,
    RoutingSchedule,
    RoutingStatistics,
    writer_period,
)
from dgnet_det.engine.launch import distribute
from dgnet_det.engine.optimizer import build_optimizer
from dgnet_det.engine.output import OutputFolder
from dgnet_det.engine.summary import summarize
from dgnet_det.errors import UserError, one_line_in_training_loop
from dgnet_det.modeling.build import compile_backbone

NORMALIZER = "loss_normalizer"  # RetinaNet's and FCOS's running mean, which no checkpoint holds
START_ANEW = "name it as MODEL.WEIGHTS, and another OUTPUT_DIR, without --resume"


class Trainer(SimpleTrainer):
    """Detectron2's :class:`SimpleTrainer`, with:

    - exact resumption: the random numbers and the data of a step follow from ``SEED``, iteration
      and process, so a resumed training ends at the weights of an uninterrupted one, bit for bit on
      CPUs;
    - gradient accumulation, and mixed precision on CPUs as well;
    - a checkpoint on Ctrl-C and SIGTERM, which end all processes after the same step; a second
      Ctrl-C ends at once;
    - hooks for the best checkpoint, the routers' statistics and the picture of the curves.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        loader: DataLoader,
        *,
        evaluate: Callable[[], dict[str, Any]],
        metric: str | None,
        schedule: ParamScheduler | None = None,
        hook: HookBase | None = None,
        saved: nn.Module | None = None,
        class_names: Sequence[str] = (),
        accumulation: int = 1,
    ) -> None:
        """
        Args:
            cfg: fitted by :func:`.fit_schedule`.
            model: maps a batch of ``loader`` to a dictionary of losses.
            evaluate: returns the results of an evaluation.
            metric: the result by which the best checkpoint is kept; None: none is kept.
            schedule: the learning rate's; default: Detectron2's for this config.
            hook: one that runs before checkpoints and evaluations.
            saved: the part of ``model`` that checkpoints hold; default: all of it.
            class_names: as for :class:`DGNetCheckpointer`.
            accumulation: batches of ``loader`` in a step.
        """
        compile_backbone(cfg, model)
        super().__init__(distribute(model, cfg), loader, build_optimizer(cfg, model))
        one_line_in_training_loop()
        self.cfg, self.accumulation = cfg, accumulation
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.device = torch.device(cfg.MODEL.DEVICE)
        amp = cfg.SOLVER.AMP
        self.precision = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        if "PRECISION" in amp:
            self.precision = getattr(torch, amp.PRECISION)
        scales = amp.ENABLED and self.precision == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scales)
        self.checkpointer = DGNetCheckpointer(
            saved or model, cfg.OUTPUT_DIR, class_names=class_names, trainer=weakref.proxy(self)
        )
        self.results: dict[str, Any] = {}  # of the last evaluation
        self._evaluate = evaluate
        self._signal = 0  # that asked to stop
        self._restored = False  # whether a checkpoint with a trainer's state was loaded
        self._between_steps = self._interruptible = False

        is_main, period = comm.is_main_process(), cfg.TEST.EVAL_PERIOD
        checkpoints = hooks.PeriodicCheckpointer(
            self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=CHECKPOINTS_KEPT
        )
        self.best = BestCheckpointer(period, self.checkpointer, metric) if metric else None
        self.register_hooks(
            [
                hooks.IterationTimer(),
                hooks.LRScheduler(
                    self.optimizer, schedule or build_lr_scheduler(cfg, self.optimizer)
                ),
                RoutingSchedule(),
                RoutingStatistics() if is_main else None,
                hook,
                checkpoints if is_main else None,
                hooks.EvalHook(period, self.evaluate),
                self.best if is_main else None,
            ]
        )

    def run(self, folder: OutputFolder, *, resume: bool) -> dict[str, Any]:
        """Train from ``MODEL.WEIGHTS``, or the last checkpoint if ``resume``, to the end.

        Returns:
            The last evaluation's results.

        Raises:
            UserError: a checkpoint does not fit, or the training diverged.
        """
        start = time.time()
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        begun = resume and self.checkpointer.has_checkpoint()
        if begun and not self._restored:
            file = self.checkpointer.get_checkpoint_file()
            raise UserError(f"{file}: holds weights alone, without a trainer's state: {START_ANEW}")
        first = self.iter + 1 if begun else 0
        if first >= self.max_iter:
            folder.open()
            logging.getLogger(__name__).info(
                "The training in %s is finished, with %d of %d iterations: nothing is left to do"
                " but an evaluation. To train on, raise SOLVER.MAX_ITER or SOLVER.EPOCHS",
                self.cfg.OUTPUT_DIR, first, self.max_iter,
            )  # fmt: skip
            self.evaluate()
        else:
            folder.open(self.cfg, anew=not begun)
            self.data_loader.batch_sampler.skipped = first * self.accumulation
            if comm.is_main_process():
                writers = default_writers(self.cfg.OUTPUT_DIR, self.max_iter)
                period = writer_period(self.cfg)
                self.register_hooks([hooks.PeriodicWriter(writers, period), CurvesPicture()])
            self.train(first, self.max_iter)
        if comm.is_main_process():
            logging.getLogger(__name__).info(
                "%s", summarize(self.cfg, self.results, self.best, time.time() - start)
            )
        return self.results

    def train(self, start_iter: int, max_iter: int) -> None:
        """As :meth:`SimpleTrainer.train`.

        Raises:
            KeyboardInterrupt: with the signal's number, after a checkpoint was saved.
        """
        main_thread = threading.current_thread() is threading.main_thread()  # others get no signals
        numbers = (signal.SIGINT, signal.SIGTERM) if main_thread else ()
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            super().train(start_iter, max_iter)
        except KeyboardInterrupt:
            if self._between_steps and self.iter < max_iter:
                self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            raise
        finally:
            self.data_loader.batch_sampler.over.fill_(1)
            for number, handler in before.items():
                signal.signal(number, handler)

    def run_step(self) -> None:
        """One step of the optimizer.

        Raises:
            UserError: the training diverged.
        """
        self._between_steps = False
        try:
            self._step()
        except FloatingPointError as error:  # also of Detectron2's heads
            solver = self.cfg.SOLVER
            raise UserError(
                f"SOLVER.BASE_LR {solver.BASE_LR:g}, with a batch of {solver.IMS_PER_BATCH}: the"
                f" loss became NaN or infinite at iteration {self.iter}: set a lower one, or a"
                f" longer warm-up than {solver.WARMUP_ITERS} iterations"
            ) from error

    def _step(self) -> None:
        # Data have random numbers of their own: a resumed training starts the loader once more.
        seed_all_rng(mix_seeds(data_seed(self.cfg), self.iter, comm.get_rank()))
        self.optimizer.zero_grad()
        totals: dict[str, torch.Tensor] = {}
        data_time = 0.0
        for more in reversed(range(self.accumulation)):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            distributed = isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if more and distributed else contextlib.nullcontext():
                with torch.autocast(
                    self.device.type, self.precision, enabled=self.cfg.SOLVER.AMP.ENABLED
                ):
                    losses = {k: x / self.accumulation for k, x in self.model(batch).items()}
                self.scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + loss.detach()
        self._write_metrics(totals, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def after_step(self) -> None:
        """Run the hooks, then stop if a signal to any of the processes has asked for it."""
        self._between_steps = True
        super().after_step()
        if comm.get_world_size() > 1:
            asked = torch.tensor(self._signal, device=self.device)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            self._signal = int(asked)
        if self._signal and self.iter + 1 < self.max_iter:
            raise KeyboardInterrupt(self._signal)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate and return the results. A signal ends this at once."""
        self._interruptible = True
        if self._signal:
            raise KeyboardInterrupt(self._signal)
        self.results = self._evaluate()
        self._interruptible = False
        return self.results

    def _receive(self, number: int, _: Any) -> None:
        again = self._signal == number == signal.SIGINT
        self._signal = number
        if again or self._interruptible:
            raise KeyboardInterrupt(number)

    def state_dict(self) -> dict[str, Any]:
        """Return what ``--resume`` needs beside the weights."""
        state = {**super().state_dict(), "scaler": self.scaler.state_dict()}
        if isinstance(value := getattr(self.checkpointer.model, NORMALIZER, None), float):
            state[NORMALIZER] = value
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the optimizer's state is missing, or of other groups of parameters.
        """
        # Detectron2's DefaultTrainer keeps the optimizer elsewhere, and so did ours once.
        if missing := sorted({"iteration", "optimizer", "scaler"} - state_dict.keys()):
            raise UserError(f"another trainer saved it, without {', '.join(missing)}: {START_ANEW}")
        saved, own = (
            [len(group["params"]) for group in groups]
            for groups in (state_dict["optimizer"]["param_groups"], self.optimizer.param_groups)
        )
        if saved != own:
            raise UserError(f"it has other groups of parameters than this version: {START_ANEW}")
        super().load_state_dict(state_dict)
        self._restored = True
        self.scaler.load_state_dict(state_dict["scaler"])
        if NORMALIZER in state_dict:
            setattr(self.checkpointer.model, NORMALIZER, state_dict[NORMALIZER])
