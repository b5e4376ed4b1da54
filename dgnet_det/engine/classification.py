"""Training of a classifier on Detectron2's engine: the paper's pretraining (§6.1)."""

import contextlib
import logging
import time
import weakref
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer, hooks
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.data.classification import (
    TrainingBatches,
    build_datasets,
    build_test_loader,
    build_train_loader,
    mix_seeds,
)
from dgnet_det.engine.hooks import (
    CHECKPOINTS_KEPT,
    RoutingSchedule,
    RoutingStatistics,
    gather_spread,
    metrics_writer,
)
from dgnet_det.engine.launch import OutputFolder, distribute
from dgnet_det.engine.optimizer import build_optimizer, checked_optimizer_state
from dgnet_det.engine.schedule import check_solver, divergence
from dgnet_det.errors import UserError, one_line_in_training_loop
from dgnet_det.modeling.budget import BudgetLoss, budget_loss
from dgnet_det.modeling.classifier import DGNetClassifier, build_classifier
from dgnet_det.modeling.observation import record_spread


def lr_multiplier(cfg: CfgNode) -> ParamScheduler:
    """The factor on ``SOLVER.BASE_LR``, as a function of the share of training that is done.

    With T iterations, T_w of them warm-up, and f = ``SOLVER.WARMUP_FACTOR``, iteration t has

        f + (1 - f) · t / T_w                               for t < T_w
        (1 + cos(π · (t - T_w) / (T - T_w))) / 2            after that

    Raises:
        UserError: a warm-up that is not shorter than the training.
    """
    options = cfg.CLASSIFICATION
    if options.WARMUP_EPOCHS >= options.EPOCHS:
        raise UserError(
            f"CLASSIFICATION.WARMUP_EPOCHS {options.WARMUP_EPOCHS}: it must be less than"
            f" CLASSIFICATION.EPOCHS {options.EPOCHS}"
        )
    warmup = options.WARMUP_EPOCHS / options.EPOCHS
    return CompositeParamScheduler(
        [LinearParamScheduler(cfg.SOLVER.WARMUP_FACTOR, 1.0), CosineParamScheduler(1.0, 0.0)],
        lengths=[warmup, 1 - warmup],
        interval_scaling=["rescaled", "rescaled"],
    )


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels [B] are the best of the logits [B, K], and how many among the best five:
    [2], int64."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best.eq(labels[:, None])
    return torch.stack([hits[:, 0].sum(), hits.sum()])


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: str) -> dict[str, Any]:
    """``top1`` and ``top5`` in per cent, over the shares of all processes, and under ``wiring``,
    in the main process, the spread of α over the images where the model has graphs.

    Every process takes over the buffers of the first, whose running statistics are those that a
    checkpoint holds.

    Args:
        model: from RGB images [b, 3, H, W], 0 to 255, to logits. Its mode is left as it was.
        loader: this process's share, of images and labels.
        device: where the model is.
    """
    distributed = comm.get_world_size() > 1
    if distributed:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    with inference_context(model), record_spread(model) as spread:
        for images, labels in loader:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            counts[:2] += count_hits(model(images), labels)
            counts[2] += len(labels)
    if distributed:
        dist.all_reduce(counts)
    top1, top5, total = counts.tolist()
    return {"top1": 100 * top1 / total, "top5": 100 * top5 / total, **gather_spread(spread)}


class ClassifierTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with cross-entropy, gradient accumulation and mixed precision (float16
    on GPUs, bfloat16 on CPUs). The loader gives micro-batches of images and labels without end."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        budget: BudgetLoss | None = None,
    ) -> None:
        super().__init__(model, loader, optimizer)
        self.cfg = cfg
        self.budget = budget
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=cfg.SOLVER.AMP.ENABLED and self.device.type != "cpu"
        )

    def run_step(self) -> None:
        """One iteration: one step of the optimizer."""
        options, autocast = self.cfg.CLASSIFICATION, self.cfg.SOLVER.AMP.ENABLED
        self.optimizer.zero_grad()
        mean_loss = torch.zeros((), device=self.device)
        data_time = 0.0
        for i in range(options.ACCUMULATION):
            start = time.perf_counter()
            images, labels = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            # From the iteration alone, so that nothing need be restored to resume. Not before the
            # loader, whose start draws as well.
            torch.manual_seed(mix_seeds(data_seed(self.cfg), self.iter, i, comm.get_rank()))
            distributed = isinstance(self.model, DistributedDataParallel)
            more = distributed and i < options.ACCUMULATION - 1
            with self.model.no_sync() if more else contextlib.nullcontext():
                with torch.autocast(self.device.type, enabled=autocast):
                    logits = self.model(images)
                    loss = F.cross_entropy(logits, labels, label_smoothing=options.LABEL_SMOOTHING)
                    if self.budget is not None:
                        loss = loss + self.budget()
                    loss = loss / options.ACCUMULATION
                self.scaler.scale(loss).backward()
            mean_loss += loss.detach()
        try:
            self._write_metrics({"loss": mean_loss}, data_time)
        except FloatingPointError as error:
            raise UserError(divergence(self.cfg, self.iter)) from error
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.scaler.load_state_dict(state_dict["scaler"])


def train(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Train a classifier and leave checkpoints, ``metrics.json`` and TensorBoard events in
    ``OUTPUT_DIR``.

    With ``resume`` it continues from the last checkpoint there, if there is one, to the weights
    that an uninterrupted run would have reached, bit for bit on a CPU.

    Returns:
        As :func:`evaluate`, on the validation images.

    Raises:
        UserError: as :func:`build_datasets`, :func:`build_classifier`, :func:`lr_multiplier` and
            :class:`TrainingBatches`, and for a wrong ``MODEL.WEIGHTS``. Nothing is written then.
    """
    one_line_in_training_loop()
    check_solver(cfg)
    with OutputFolder(cfg) as folder:
        train_set, test_set = build_datasets(cfg)
        batches = TrainingBatches(
            train_set,
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            accumulation=cfg.CLASSIFICATION.ACCUMULATION,
            seed=data_seed(cfg),
        )
        classifier = _classifier(cfg)
        optimizer = build_optimizer(cfg, classifier)
        model = distribute(classifier, cfg)
        loader = build_train_loader(cfg, train_set, batches, seed=data_seed(cfg))
        budget = budget_loss(cfg, classifier)
        trainer = ClassifierTrainer(cfg, model, loader, optimizer, budget)
        checkpointer = DGNetCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(trainer))
        test_loader = build_test_loader(cfg, test_set)
        results: dict[str, Any] = {}

        def test() -> dict[str, Any]:
            results.update(evaluate(classifier, test_loader, cfg.MODEL.DEVICE))
            logging.getLogger(__name__).info("top-1 %(top1).2f %%, top-5 %(top5).2f %%", results)
            return results

        period, is_main = cfg.TEST.EVAL_PERIOD, comm.is_main_process()
        checkpoints = hooks.PeriodicCheckpointer(
            checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=CHECKPOINTS_KEPT
        )
        trainer.register_hooks(
            [
                hooks.IterationTimer(),
                hooks.LRScheduler(optimizer, lr_multiplier(cfg)),
                RoutingSchedule(),
                *([RoutingStatistics(), checkpoints] if is_main else []),
                hooks.EvalHook(period, test),
            ]
        )
        with checked_optimizer_state(cfg.OUTPUT_DIR):
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        if resume and checkpointer.has_checkpoint():
            batches.start_iteration = trainer.iter + 1
        folder.open(cfg)
        max_iter = cfg.CLASSIFICATION.EPOCHS * batches.iterations_per_epoch
        if is_main:
            trainer.register_hooks([metrics_writer(cfg, max_iter)])
        trainer.train(batches.start_iteration, max_iter)
        return results


def evaluate_checkpoint(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """As :func:`evaluate`, on the validation images, of ``MODEL.WEIGHTS``, or of the last
    checkpoint in ``OUTPUT_DIR`` if ``resume``.

    Raises:
        UserError: as :func:`train`, and for a checkpoint without this classifier's head.
    """
    check_solver(cfg)
    with OutputFolder(cfg) as folder:
        model = _classifier(cfg)
        checkpointer = DGNetCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            needed="a classifier's checkpoint, of CLASSIFICATION.NUM_CLASSES classes",
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        _, test_set = build_datasets(cfg)
        folder.open()
        return evaluate(model, build_test_loader(cfg, test_set), cfg.MODEL.DEVICE)


def data_seed(cfg: CfgNode) -> int:
    """Of the images' order and augmentation. With ``SEED`` -1 chance decides the first weights
    alone."""
    return max(cfg.SEED, 0)


def _classifier(cfg: CfgNode) -> DGNetClassifier:
    model = build_classifier(cfg).to(cfg.MODEL.DEVICE)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
