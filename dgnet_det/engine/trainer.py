"""Detectron2's trainer with this project's checkpoints, data checks and edge statistics."""

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.data import CheckedDatasetMapper
from dgnet_det.data.own import dataset_class_names, register_own_datasets
from dgnet_det.engine.hooks import (
    CHECKPOINTS_KEPT,
    BestCheckpointer,
    CurvesPicture,
    RoutingSchedule,
    RoutingStatistics,
    gather_spread,
    metrics_writer,
)
from dgnet_det.engine.launch import OutputFolder, distribute
from dgnet_det.engine.optimizer import build_optimizer, checked_optimizer_state
from dgnet_det.engine.schedule import describe_schedule, divergence, fit_schedule
from dgnet_det.errors import UserError, one_line_in_training_loop
from dgnet_det.evaluation.coco import Evaluator
from dgnet_det.evaluation.zero_ap import explain_zero
from dgnet_det.modeling.budget import add_budget_loss, budget_loss
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import record_spread


class Trainer(DefaultTrainer):
    """:class:`DefaultTrainer` on CPUs as on GPUs, with :class:`DGNetCheckpointer`."""

    build_optimizer = staticmethod(build_optimizer)

    def __init__(
        self, cfg: CfgNode, *, recipe: CfgNode | None = None, given: Collection[str] = ()
    ) -> None:
        """The config is fitted to the processes and images by :func:`fit_schedule`.

        Raises:
            UserError: AMP without a GPU, or as :func:`fit_schedule`.
        """
        # Not DefaultTrainer.__init__, see distribute.
        super(DefaultTrainer, self).__init__()
        if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
            raise UserError("SOLVER.AMP.ENABLED: mixed precision needs a GPU; set it to False")
        one_line_in_training_loop()
        keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        images = get_detection_dataset_dicts(  # as Detectron2's loader picks them
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        processes = comm.get_world_size()
        class_names = dataset_class_names(cfg.DATASETS.TRAIN)
        self.cfg = fit_schedule(cfg, processes, len(images), recipe=recipe, given=given)
        logging.getLogger(__name__).info(
            "Training on %s:\n%s",
            ", ".join(cfg.DATASETS.TRAIN),
            describe_schedule(self.cfg, processes, len(images), class_names),
        )
        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        data_loader = self.build_train_loader(self.cfg, images)
        model = distribute(model, self.cfg, broadcast_buffers=False)
        trainer = AMPTrainer if self.cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(self.cfg, optimizer)
        self.checkpointer = DGNetCheckpointer(
            model, self.cfg.OUTPUT_DIR, class_names=class_names, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = self.cfg.SOLVER.MAX_ITER
        self._last_eval_results: dict[str, Any] = {}  # DefaultTrainer's own name
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks but the writer of metrics, with few checkpoints; the best one by box
        AP, and the statistics of edges."""
        cfg, is_main = self.cfg, comm.is_main_process()
        period, names = cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST
        built: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler(), RoutingSchedule()]
        if is_main:
            built.append(RoutingStatistics())
        if cfg.TEST.PRECISE_BN.ENABLED:
            loader = self.build_train_loader(cfg)
            built.append(hooks.PreciseBN(period, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER))
        if is_main:
            built.append(
                hooks.PeriodicCheckpointer(
                    self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=CHECKPOINTS_KEPT
                )
            )
        built.append(hooks.EvalHook(period, self._evaluate))
        if cfg.TEST.AUG.ENABLED:
            built.append(hooks.EvalHook(0, lambda: self.test_with_TTA(cfg, self.model)))
        if is_main and names:
            metric = "bbox/AP" if len(names) == 1 else f"{names[0]}/bbox/AP"
            built.append(BestCheckpointer(period, self.checkpointer, metric))
        return built

    def train(self) -> Any:
        """As Detectron2's. The files of the metrics are opened here, and the curves drawn at the
        end."""
        if comm.is_main_process():
            self.register_hooks([metrics_writer(self.cfg, self.max_iter), CurvesPicture()])
        return super().train()

    def _evaluate(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def run_step(self) -> None:
        """One iteration.

        Raises:
            UserError: the training diverged.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            raise UserError(
                f"{divergence(self.cfg, self.iter)}, or a longer SOLVER.WARMUP_ITERS than"
                f" {self.cfg.SOLVER.WARMUP_ITERS}"
            ) from error

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, by :func:`build_model`, with the budget loss where
        ``MODEL.DGNET.SPARSITY_WEIGHT`` is set."""
        model = build_model(cfg)
        if loss := budget_loss(cfg, model):
            add_budget_loss(model, loss)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, images: list[dict[str, Any]] | None = None) -> Any:
        """Detectron2's loader, of ``images`` where they have been loaded, with images and
        annotations checked as they are read."""
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
        """As Detectron2's, with the spread over the images of α, where the model has graphs, or of
        choices, where it has routed stages, under ``wiring``. Where the box AP is 0, the likely
        causes are logged."""
        names = cfg.DATASETS.TEST
        evaluators = evaluators or [cls.build_evaluator(cfg, name) for name in names]
        with record_spread(model) as spread:
            results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            by_name = {names[0]: results} if len(names) == 1 else results
            for name, evaluator in zip(names, evaluators, strict=True):
                if isinstance(evaluator, Evaluator):
                    explain_zero(cfg, model, evaluator, by_name[name])
        results.update(gather_spread(spread))
        return results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with test-time augmentation, as ``TEST.AUG`` describes, without the spread;
        metric names end in ``_TTA``."""
        logging.getLogger(__name__).info("Inference with test-time augmentation ...")
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())


def train(
    cfg: CfgNode,
    *,
    resume: bool = False,
    recipe: CfgNode | None = None,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Train a detector, with its traces in ``OUTPUT_DIR``.

    Args:
        cfg, recipe, given: as for :func:`fit_schedule`. Own datasets, if any, are registered.
        resume: continue from the last checkpoint of ``OUTPUT_DIR``, if there is one.

    Returns:
        The last evaluation's results.

    Raises:
        UserError: what is wrong with the config, the data or a checkpoint; nothing is written then.
    """
    register_own_datasets(cfg)
    with OutputFolder(cfg) as folder:
        trainer = Trainer(cfg, recipe=recipe, given=given)
        with checked_optimizer_state(cfg.OUTPUT_DIR):
            trainer.resume_or_load(resume=resume)
        folder.open(trainer.cfg)
        trainer.train()
        return trainer._last_eval_results


def evaluate(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """The results of ``MODEL.WEIGHTS``, or of the last checkpoint of ``OUTPUT_DIR`` if ``resume``.

    Raises:
        UserError: the checkpoint is not a whole detector of the data's classes.
    """
    register_own_datasets(cfg)
    with OutputFolder(cfg) as folder:
        model = build_model(cfg)
        checkpointer = DGNetCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            class_names=dataset_class_names(cfg.DATASETS.TEST),
            needed="a detector's checkpoint, of the config's classes",
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        folder.open()
        optimize_for_inference(model)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
