"""Training and evaluation of detectors."""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.engine import hooks
from detectron2.evaluation import inference_on_dataset, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.data import CheckedDatasetMapper
from dgnet_det.data.order import TrainingBatches, build_loader, data_seed, random_numbers_from
from dgnet_det.data.own import dataset_class_names, register_own_datasets
from dgnet_det.engine.hooks import gather_spread
from dgnet_det.engine.output import OutputFolder
from dgnet_det.engine.schedule import fit_schedule
from dgnet_det.engine.summary import announce
from dgnet_det.engine.trainer import Trainer
from dgnet_det.errors import UserError
from dgnet_det.evaluation.coco import Evaluator, build_image_loader
from dgnet_det.evaluation.zero_ap import explain_zero
from dgnet_det.modeling.budget import add_budget_loss, budget_loss
from dgnet_det.modeling.build import build_model, compile_backbone
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import record_spread


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the model, with the budget loss that ``MODEL.DGNET.SPARSITY_WEIGHT`` or
    ``MODEL.DRNET.BUDGET_WEIGHT`` asks for."""
    model = build_model(cfg)
    if loss := budget_loss(cfg, model):
        add_budget_loss(model, loss)
    logging.getLogger(__name__).debug("Model:\n%s", model)
    return model


def training_images(cfg: CfgNode) -> list[dict[str, Any]]:
    """The images that the config trains on, in Detectron2's dataset format."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
    )


def build_train_loader(cfg: CfgNode, images: list[dict[str, Any]]) -> DataLoader:
    """Endless batches of this process. Sampler, mapper and groups of aspect ratios are those of
    Detectron2's loader; the images are checked as they are read."""
    with random_numbers_from(data_seed(cfg)):  # from which the sampler draws its seed
        stock = build_detection_train_loader(
            cfg,
            mapper=CheckedDatasetMapper(cfg, is_train=True),
            dataset=images,
            aspect_ratio_grouping=False,
            num_workers=0,
        ).dataset
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    wide = [int(image["width"] > image["height"]) for image in images] if grouped else None
    size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    batches = TrainingBatches(stock.sampler, size, wide)
    return build_loader(cfg, stock.dataset, batches, trivial_batch_collator)


def _first_batches(cfg: CfgNode, images: list[dict[str, Any]]) -> Iterator[Any]:
    """The first batches of a training, again and again, for PreciseBN: a resumed training then has
    the same statistics as an uninterrupted one."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # as Detectron2 has it
    while True:
        yield from islice(build_train_loader(cfg, images), cfg.TEST.PRECISE_BN.NUM_ITER)


def train_detector(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Train a detector into ``OUTPUT_DIR``, and return the last evaluation's results.

    Args:
        cfg: its schedule is fitted to processes and images by :func:`fit_schedule`.
        resume: go on from the last checkpoint of ``OUTPUT_DIR``, if there is one.

    Raises:
        UserError: config, data or checkpoint cannot be used. Nothing is written then.
    """
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        raise UserError("SOLVER.AMP.ENABLED: mixed precision needs a GPU; set it to False")
    register_own_datasets(cfg)
    with OutputFolder(cfg) as folder:
        images, names = training_images(cfg), dataset_class_names(cfg.DATASETS.TRAIN)
        cfg = fit_schedule(cfg, comm.get_world_size(), len(images))
        source, tests = ", ".join(cfg.DATASETS.TRAIN), cfg.DATASETS.TEST
        announce(cfg, source, len(images), names, evaluates=bool(tests))
        model = build_detector(cfg)
        precise_bn = None
        if cfg.TEST.PRECISE_BN.ENABLED:
            again, number = _first_batches(cfg, images), cfg.TEST.PRECISE_BN.NUM_ITER
            precise_bn = hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, model, again, number)
        trainer = Trainer(
            cfg,
            model,
            build_train_loader(cfg, images),
            evaluate=lambda: detector_metrics(cfg, model),
            metric="bbox/AP" if len(tests) == 1 else f"{tests[0]}/bbox/AP" if tests else None,
            hook=precise_bn,
            class_names=names,
        )
        if cfg.TEST.AUG.ENABLED:
            trainer.register_hooks([hooks.EvalHook(0, lambda: augmented_metrics(cfg, model))])
        results = trainer.run(folder, resume=resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results


def evaluate_detector(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
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
        compile_backbone(cfg, model)
        results = detector_metrics(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(augmented_metrics(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results


def detector_metrics(cfg: CfgNode, model: nn.Module, folder: str = "inference") -> dict[str, Any]:
    """COCO's metrics on ``DATASETS.TEST``, by dataset if there are several; under ``wiring`` the
    spread of what the routers decide. Detections are written to ``folder`` of ``OUTPUT_DIR``, and
    the likely causes of a box AP of 0 are logged.

    Raises:
        UserError: a dataset of another evaluator type.
    """
    logger = logging.getLogger(__name__)
    results: dict[str, Any] = OrderedDict()
    with record_spread(model) as spread:
        for name in cfg.DATASETS.TEST:
            kind = MetadataCatalog.get(name).evaluator_type
            if kind != "coco":
                raise UserError(f"DATASETS.TEST {name}: its evaluator is {kind!r}, not 'coco'")
            evaluator = Evaluator(
                name, str(Path(cfg.OUTPUT_DIR, folder)), cfg.TEST.KEYPOINT_OKS_SIGMAS
            )
            images = get_detection_dataset_dicts([name], filter_empty=False)
            loader = build_image_loader(cfg, images)
            results[name] = inference_on_dataset(model, loader, evaluator)
            for task, metrics in results[name].items():  # in the main process alone
                figures = (f"{k} {v:.2f}" for k, v in metrics.items() if "-" not in k)
                logger.info("%s, %s: %s", name, task, ", ".join(figures))
            if comm.is_main_process():
                explain_zero(cfg, model, evaluator, results[name])
    if len(results) == 1:
        (results,) = results.values()
    results.update(gather_spread(spread))
    return results


def augmented_metrics(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """As :func:`detector_metrics`, with the test-time augmentation of ``TEST.AUG``; names end in
    ``_TTA``."""
    logging.getLogger(__name__).info("Inference with test-time augmentation ...")
    results = detector_metrics(cfg, GeneralizedRCNNWithTTA(cfg, model), "inference_TTA")
    return OrderedDict((f"{name}_TTA", value) for name, value in results.items())
