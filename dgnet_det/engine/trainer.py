"""Detectron2's trainer with this project's checkpoints, data checks and router statistics."""

import argparse
import contextlib
import logging
import os
import weakref
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    default_setup,
    hooks,
)
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from dgnet_det.checkpoint import DGNetCheckpointer, WholeCheckpointer
from dgnet_det.data import CheckedDatasetMapper
from dgnet_det.data.classes import dataset_class_names
from dgnet_det.data.own import register_own_datasets
from dgnet_det.engine.schedule import describe_schedule, fit_schedule
from dgnet_det.errors import UserError, one_line_in_training_loop
from dgnet_det.evaluation.coco import Evaluator
from dgnet_det.evaluation.zero_ap import explain_zero
from dgnet_det.modeling.budget import add_budget_loss, budget_loss
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import graph_statistics, record_edge_weights
from dgnet_det.utils.curves import draw_curves, read_metrics
from dgnet_det.utils.files import write_json
from dgnet_det.utils.pictures import save_figure

WRITER_PERIOD = 20  # iterations; Detectron2's own default
PICTURE = "training.png"  # in OUTPUT_DIR


def set_up(cfg: CfgNode, args: argparse.Namespace | None = None) -> None:
    """What every process does first: Detectron2's ``default_setup``, with this project's messages
    in the log and the config's own datasets registered."""
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="dgnet_det")
    register_own_datasets(cfg)


def training_images(cfg: CfgNode) -> list[dict[str, Any]]:
    """The images that are trained on, in Detectron2's dataset format: as Detectron2's loader picks
    them, by default those with objects."""
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=(
            cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
        ),
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )


class Trainer(DefaultTrainer):
    """:class:`DefaultTrainer` on CPUs as on GPUs, with :class:`DGNetCheckpointer`."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the config. It is fitted to the processes and images by :func:`fit_schedule`.

        Raises:
            UserError: AMP without a GPU, or as :func:`fit_schedule`.
        """
        # Not DefaultTrainer.__init__: it gives DistributedDataParallel a device id, which CPU
        # processes do not have.
        super(DefaultTrainer, self).__init__()
        if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
            raise UserError("SOLVER.AMP.ENABLED: mixed precision needs a GPU; set it to False")
        one_line_in_training_loop()
        images, processes = training_images(cfg), comm.get_world_size()
        class_names = dataset_class_names(cfg.DATASETS.TRAIN)
        self.cfg = fit_schedule(cfg, processes, len(images))
        logging.getLogger(__name__).info(
            "Training on %s:\n%s",
            ", ".join(cfg.DATASETS.TRAIN),
            describe_schedule(self.cfg, processes, len(images), class_names),
        )
        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        data_loader = self.build_train_loader(self.cfg, images)
        device_ids = None if self.cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        trainer = AMPTrainer if self.cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(self.cfg, optimizer)
        self.checkpointer = DGNetCheckpointer(
            model, self.cfg.OUTPUT_DIR, class_names=class_names, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = self.cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, the best checkpoint by box AP, the router statistics and the
        picture of the curves."""
        built = super().build_hooks()
        # Detectron2 puts the writer last, in the main process alone. Evaluation, which all
        # processes do together, must come in one order in all of them.
        last = [built.pop(), CurvesPicture()] if comm.is_main_process() else []
        if comm.is_main_process():
            period, names = self.cfg.TEST.EVAL_PERIOD, self.cfg.DATASETS.TEST
            # The statistics come before the evaluation, whose images they are not of.
            built = [RouterStatistics(), *built]
            if names:
                metric = "bbox/AP" if len(names) == 1 else f"{names[0]}/bbox/AP"
                built.append(BestCheckpointer(period, self.checkpointer, metric))
        if self.cfg.TEST.AUG.ENABLED:
            built.append(hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model)))
        return [*built, *last]

    def run_step(self) -> None:
        """One iteration.

        Raises:
            UserError: the training diverged.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            solver = self.cfg.SOLVER
            raise UserError(
                f"SOLVER.BASE_LR {solver.BASE_LR:g}, with a batch of {solver.IMS_PER_BATCH}: the"
                f" loss became NaN or infinite at iteration {self.iter}: set a lower one, or a"
                f" longer SOLVER.WARMUP_ITERS than {solver.WARMUP_ITERS}"
            ) from error

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, by :func:`build_model`, with the sparsity loss where
        ``MODEL.DGNET.SPARSITY_WEIGHT`` is set."""
        model = build_model(cfg)
        if loss := budget_loss(cfg, model):
            add_budget_loss(model, loss)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, images: list[dict[str, Any]] | None = None) -> Any:
        """Detectron2's loader of :func:`training_images`, or of ``images`` where they have been
        loaded, with images and annotations checked as they are read."""
        mapper = CheckedDatasetMapper(cfg, is_train=True)
        return build_detection_train_loader(cfg, mapper=mapper, dataset=images)

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
        return Evaluator(dataset_name, folder, cfg.TEST.KEYPOINT_OKS_SIGMAS)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: list[DatasetEvaluator] | None = None,
    ) -> OrderedDict:
        """As Detectron2's. Where the box AP is 0, the likely causes are logged."""
        names = cfg.DATASETS.TEST
        evaluators = evaluators or [cls.build_evaluator(cfg, name) for name in names]
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            by_name = {names[0]: results} if len(names) == 1 else results
            for name, evaluator in zip(names, evaluators, strict=True):
                if isinstance(evaluator, Evaluator):
                    make_loader = partial(cls.build_test_loader, cfg, name)
                    explain_zero(cfg, model, evaluator, by_name[name], make_loader)
        return results

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
            self._wirings = self._stack.enter_context(record_edge_weights(self.trainer.model))

    def after_step(self) -> None:
        """Write what was recorded, as ``wiring/res2.0/open_edges`` and so on."""
        self._stack.close()
        for name, wiring in (self._wirings or {}).items():
            for key, value in graph_statistics(wiring).items():
                self.trainer.storage.put_scalar(f"wiring/{name}/{key}", value)


class CurvesPicture(HookBase):
    """The run's curves as a picture in ``OUTPUT_DIR``, once it ends, also by an error."""

    def after_train(self) -> None:
        """Draw what the writers before this hook have written."""
        folder = Path(self.trainer.cfg.OUTPUT_DIR)
        curves = read_metrics(folder / "metrics.json")
        if curves:
            save_figure(draw_curves(curves), folder / PICTURE)
            logging.getLogger(__name__).info("Curves drawn to %s", folder / PICTURE)


def evaluate(cfg: CfgNode, resume: bool) -> dict:
    """Evaluate MODEL.WEIGHTS, or the last checkpoint of OUTPUT_DIR if ``resume``."""
    model = Trainer.build_model(cfg)
    checkpointer = WholeCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        class_names=dataset_class_names(cfg.DATASETS.TEST),
        needed="a detector's checkpoint, of the config's classes",
    )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    optimize_for_inference(model)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    return results


def train(cfg: CfgNode, resume: bool) -> dict:
    """Train, from the last checkpoint of OUTPUT_DIR if ``resume``; the last results."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return dict(getattr(trainer, "_last_eval_results", {}))


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What each process does."""
    set_up(cfg, args)
    results = (evaluate if args.eval_only else train)(cfg, args.resume)
    if comm.is_main_process():
        verify_results(cfg, results)
        if args.json:
            write_json(args.json, results)
