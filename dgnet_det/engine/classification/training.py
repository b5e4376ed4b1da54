"""Training of a classifier on Detectron2's engine."""

import contextlib
import logging
import os
import time
import weakref
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, default_writers, hooks
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dgnet_det.checkpoint import DGNetCheckpointer, WholeCheckpointer
from dgnet_det.data.classification import build_datasets
from dgnet_det.engine.classification.evaluation import evaluate
from dgnet_det.engine.classification.loading import (
    TrainingBatches,
    build_test_loader,
    build_train_loader,
    mix_seeds,
)
from dgnet_det.engine.classification.schedule import lr_multiplier
from dgnet_det.errors import UserError, one_line_in_training_loop
from dgnet_det.modeling.budget import BudgetLoss, budget_loss
from dgnet_det.modeling.classifier import DGNetClassifier, build_classifier

CHECKPOINTS_KEPT = 3


class ClassifierTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with cross-entropy, gradient accumulation and mixed precision (float16
    on GPUs, bfloat16 on CPUs)."""

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        accumulation: int = 1,
        label_smoothing: float = 0.0,
        mixed_precision: bool = False,
        seed: int = 0,
        budget: BudgetLoss | None = None,
    ) -> None:
        """
        Args:
            model: from images to logits; it may be in ``DistributedDataParallel``.
            loader: endless micro-batches of images and labels.
            optimizer: of the model's parameters.
            device: where the model is.
            accumulation: micro-batches per iteration.
            label_smoothing: share of the target spread over all classes.
            mixed_precision: whether to autocast.
            seed: of what the model draws, such as dropout.
            budget: a loss of the model's edges to add.
        """
        super().__init__(model, loader, optimizer)
        self.device = device
        self.accumulation = accumulation
        self.label_smoothing = label_smoothing
        self.mixed_precision = mixed_precision
        self.seed = seed
        self.budget = budget
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=mixed_precision and device.type == "cuda"
        )

    def run_step(self) -> None:
        """One iteration: one step of the optimizer."""
        self.optimizer.zero_grad()
        mean_loss = torch.zeros((), device=self.device)
        data_time = 0.0
        for i in range(self.accumulation):
            start = time.perf_counter()
            images, labels = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            # From the iteration alone, so that nothing need be restored to resume. Not before the
            # loader, whose start draws as well.
            torch.manual_seed(mix_seeds(self.seed, self.iter, i, comm.get_rank()))
            is_last = i == self.accumulation - 1
            with self._gradients_synchronized(is_last):
                with torch.autocast(self.device.type, enabled=self.mixed_precision):
                    logits = self.model(images)
                    loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
                    if self.budget is not None:
                        loss = loss + self.budget()
                    loss = loss / self.accumulation
                self.scaler.scale(loss).backward()
            mean_loss += loss.detach()
        self._write_metrics({"loss": mean_loss}, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """What ``--resume`` needs besides the model."""
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self.scaler.load_state_dict(state_dict["scaler"])

    def _gradients_synchronized(self, synchronized: bool) -> contextlib.AbstractContextManager:
        if isinstance(self.model, DistributedDataParallel) and not synchronized:
            return self.model.no_sync()
        return contextlib.nullcontext()


def join_processes(cfg: CfgNode) -> torch.device:
    """Join the other processes that torchrun started, if any; this process's device."""
    if cfg.MODEL.DEVICE == "cpu" or not torch.cuda.is_available():
        device = torch.device("cpu")
    else:
        local_rank, available = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local_rank >= available:
            raise UserError(f"--nproc-per-node: this machine has {available} GPUs")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def train(cfg: CfgNode, device: torch.device, *, resume: bool = False) -> dict[str, float]:
    """Train a classifier and leave checkpoints, ``metrics.json`` and TensorBoard events in
    ``OUTPUT_DIR``.

    Args:
        cfg: the config.
        device: this process's.
        resume: continue from the last checkpoint in ``OUTPUT_DIR``, if there is one, to the weights
            that an uninterrupted run would have reached, bit for bit on a CPU.

    Returns:
        ``top1`` and ``top5`` on the validation images, in per cent.

    Raises:
        UserError: as :func:`build_datasets`, :func:`build_classifier`, :func:`lr_multiplier` and
            :class:`TrainingBatches`, and for a wrong ``MODEL.WEIGHTS``.
    """
    one_line_in_training_loop()
    # With SEED -1 chance decides the first weights, but not the order of the images.
    options, seed = cfg.CLASSIFICATION, max(cfg.SEED, 0)
    train_set, test_set = build_datasets(cfg)
    batches = TrainingBatches(
        train_set,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        accumulation=options.ACCUMULATION,
        seed=seed,
    )
    max_iter = options.EPOCHS * batches.iterations_per_epoch
    classifier = _classifier(cfg, device)
    model: nn.Module = classifier
    optimizer = build_optimizer(cfg, model)
    multiplier = lr_multiplier(cfg)
    if comm.get_world_size() > 1:
        model = DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )
    trainer = ClassifierTrainer(
        model,
        build_train_loader(cfg, train_set, batches, seed=seed),
        optimizer,
        device=device,
        accumulation=options.ACCUMULATION,
        label_smoothing=options.LABEL_SMOOTHING,
        mixed_precision=cfg.SOLVER.AMP.ENABLED,
        seed=seed,
        budget=budget_loss(cfg, classifier),
    )
    checkpointer = DGNetCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(trainer))
    test_loader = build_test_loader(cfg, test_set)
    results: dict[str, float] = {}

    def test() -> dict[str, float]:
        results.update(evaluate(classifier, test_loader, device))
        logging.getLogger(__name__).info("top-1 %(top1).2f %%, top-5 %(top5).2f %%", results)
        return results

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(optimizer, multiplier),
            *_if_main(
                hooks.PeriodicCheckpointer(
                    checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=CHECKPOINTS_KEPT
                )
            ),
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test),
            *_if_main(hooks.PeriodicWriter(default_writers(cfg.OUTPUT_DIR, max_iter))),
        ]
    )
    found = comm.all_gather(resume and checkpointer.has_checkpoint())
    if any(found) and not all(found):
        raise UserError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: --resume needs it on a disk that all machines share"
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if all(found):
        batches.start_iteration = trainer.iter + 1
    trainer.train(batches.start_iteration, max_iter)
    return results


def evaluate_checkpoint(
    cfg: CfgNode, device: torch.device, *, resume: bool = False
) -> dict[str, float]:
    """``top1`` and ``top5`` on the validation images, in per cent, of ``MODEL.WEIGHTS``, or of the
    last checkpoint in ``OUTPUT_DIR`` if ``resume``.

    Raises:
        UserError: as :func:`train`, and for a checkpoint without this classifier's head.
    """
    model = _classifier(cfg, device)
    checkpointer = WholeCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        needed="a checkpoint of tools/train_classifier.py, of CLASSIFICATION.NUM_CLASSES classes",
    )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    _, test_set = build_datasets(cfg)
    return evaluate(model, build_test_loader(cfg, test_set), device)


def _classifier(cfg: CfgNode, device: torch.device) -> DGNetClassifier:
    model = build_classifier(cfg).to(device)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _if_main(hook: HookBase) -> list[HookBase]:
    return [hook] if comm.is_main_process() else []
