"""Detectron2's trainer with this project's checkpoints, data checks and router statistics."""

import contextlib
import logging
import os
import weakref
from collections import OrderedDict
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from .checkpoints import DGNetCheckpointer
from .data import CheckedDatasetMapper
from .errors import UserError, one_line_in_training_loop
from .model import build_model
from .wiring import graph_statistics, record_wiring

WRITER_PERIOD = 20  # iterations; Detectron2's own default


class Trainer(DefaultTrainer):
    """:class:`DefaultTrainer` on CPUs as on GPUs, with :class:`DGNetCheckpointer`."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the config. ``SOLVER.REFERENCE_WORLD_SIZE`` scales it to the number of processes.

        Raises:
            UserError: AMP without a GPU.
        """
        # Not DefaultTrainer.__init__: it gives DistributedDataParallel a device id, which CPU
        # processes do not have.
        super(DefaultTrainer, self).__init__()
        if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
            raise UserError("SOLVER.AMP.ENABLED: mixed precision needs a GPU; set it to False")
        one_line_in_training_loop()
        self.cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        data_loader = self.build_train_loader(self.cfg)
        device_ids = None if self.cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        trainer = AMPTrainer if self.cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(self.cfg, optimizer)
        self.checkpointer = DGNetCheckpointer(
            model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = self.cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, the best checkpoint by box AP, and the router statistics."""
        built = super().build_hooks()
        # Detectron2 puts the writer last, in the main process alone. Evaluation, which all
        # processes do together, must come in one order in all of them.
        writer = [built.pop()] if comm.is_main_process() else []
        if comm.is_main_process():
            period, names = self.cfg.TEST.EVAL_PERIOD, self.cfg.DATASETS.TEST
            metric = "bbox/AP" if len(names) == 1 else f"{next(iter(names), '')}/bbox/AP"
            # The statistics come before the evaluation, whose images they are not of.
            best = BestCheckpointer(period, self.checkpointer, metric)
            built = [RouterStatistics(), *built, best]
        if self.cfg.TEST.AUG.ENABLED:
            built.append(hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model)))
        return [*built, *writer]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, by :func:`build_model`."""
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Detectron2's loader with images and annotations checked as they are read."""
        return build_detection_train_loader(cfg, mapper=CheckedDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Detectron2's loader with images checked as they are read."""
        mapper = CheckedDatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """COCO's metrics, for whatever the model predicts.

        Raises:
            UserError: a dataset of another evaluator type.
        """
        kind = MetadataCatalog.get(dataset_name).evaluator_type
        if kind != "coco":
            raise UserError(f"DATASETS.TEST {dataset_name}: its evaluator is {kind!r}, not 'coco'")
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return COCOEvaluator(dataset_name, output_dir=folder)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with test-time augmentation, as ``TEST.AUG`` describes; metric names end in
        ``_TTA``."""
        logging.getLogger(__name__).info("Inference with test-time augmentation ...")
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's; the best value so far is in the checkpoints, so that it outlives --resume."""

    def state_dict(self) -> dict[str, Any]:
        """The best value and its iteration."""
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


class RouterStatistics(HookBase):
    """Mean edge weight, share of open edges and of absent nodes of every graph, in the metrics
    log."""

    def before_step(self) -> None:
        """Record this iteration's wiring if it will be written."""
        self._stack = contextlib.ExitStack()
        self._wirings = None
        if (self.trainer.iter + 1) % WRITER_PERIOD == 0:
            self._wirings = self._stack.enter_context(record_wiring(self.trainer.model))

    def after_step(self) -> None:
        """Write what was recorded, as ``wiring/res2.0/open_edges`` and so on."""
        self._stack.close()
        for name, wiring in (self._wirings or {}).items():
            for key, value in graph_statistics(wiring).items():
                self.trainer.storage.put_scalar(f"wiring/{name}/{key}", value)
