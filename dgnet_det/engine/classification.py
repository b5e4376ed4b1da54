"""Training of a classifier: the paper's pretraining (§6.1)."""

import logging
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.data.classification import build_datasets, build_test_loader, build_train_loader
from dgnet_det.engine.hooks import gather_spread, writer_period
from dgnet_det.engine.output import OutputFolder
from dgnet_det.engine.schedule import check_solver, fit_classifier_schedule
from dgnet_det.engine.summary import announce
from dgnet_det.engine.trainer import Trainer
from dgnet_det.modeling.budget import add_budget_loss, budget_loss
from dgnet_det.modeling.build import compile_backbone
from dgnet_det.modeling.classifier import DGNetClassifier, build_classifier
from dgnet_det.modeling.observation import record_spread


def lr_multiplier(cfg: CfgNode) -> ParamScheduler:
    """The factor on ``SOLVER.BASE_LR`` by the share of training that is done. Iteration t of T,
    with T_w for the warm-up and f = ``SOLVER.WARMUP_FACTOR``, has

        f + (1 - f) · t / T_w                               for t < T_w
        (1 + cos(π · (t - T_w) / (T - T_w))) / 2            after that
    """
    warmup = cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER
    end = cfg.SOLVER.BASE_LR_END / cfg.SOLVER.BASE_LR
    return CompositeParamScheduler(
        [LinearParamScheduler(cfg.SOLVER.WARMUP_FACTOR, 1.0), CosineParamScheduler(1.0, end)],
        lengths=[warmup, 1 - warmup],
        interval_scaling=["rescaled", "rescaled"],
    )


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the labels [B] that are the best of the logits [B, K], and those among the best five:
    [2], int64."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best.eq(labels[:, None])
    return torch.stack([hits[:, 0].sum(), hits.sum()])


@torch.no_grad()
def classifier_metrics(model: nn.Module, loader: DataLoader, device: str) -> dict[str, Any]:
    """``top1`` and ``top5`` in per cent over the images of all processes; in the main process
    ``wiring`` as well, the spread of what the routers decide.

    Every process first takes over the buffers of the main process, which are those of checkpoints.

    Args:
        model: maps RGB images [b, 3, H, W], 0 to 255, to logits. Its mode is left as it was.
        loader: batches of images and labels, this process's share.
        device: the model's.
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
    results = {"top1": 100 * top1 / total, "top5": 100 * top5 / total}
    logging.getLogger(__name__).info("top-1 %(top1).2f %%, top-5 %(top5).2f %%", results)
    return {**results, **gather_spread(spread)}


class LossOfClassifier(nn.Module):
    """Maps a batch to the losses of a classifier, as a detector does in training."""

    def __init__(self, classifier: DGNetClassifier, cfg: CfgNode) -> None:
        super().__init__()
        self.classifier, self.device = classifier, cfg.MODEL.DEVICE
        self.label_smoothing = cfg.CLASSIFICATION.LABEL_SMOOTHING
        self.hits = torch.zeros(2)  # of the latest batch, as count_hits gives them
        self.num_images = 0

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        logits = self.classifier(images)
        self.hits, self.num_images = count_hits(logits, labels), len(labels)
        return {"loss_cls": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}


class TrainingAccuracy(HookBase):
    """Logs the epoch, and the top-1 of the main process's latest images."""

    def __init__(self, model: LossOfClassifier, num_images: int) -> None:
        self.model, self.num_images = model, num_images

    def after_step(self) -> None:
        done, solver = self.trainer.iter + 1, self.trainer.cfg.SOLVER
        if done % writer_period(self.trainer.cfg) == 0 or done == self.trainer.max_iter:
            epoch = done * solver.IMS_PER_BATCH / self.num_images
            top1 = 100 * self.model.hits[0].item() / self.model.num_images
            self.trainer.storage.put_scalars(epoch=epoch, training_top1=top1, smoothing_hint=False)
            logging.getLogger(__name__).info(
                "epoch %.2f of %d, training top-1 %.1f %%", epoch, solver.EPOCHS, top1
            )


def train_classifier(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Train a classifier as :func:`.train_detector` trains a detector. The results are those of
    :func:`classifier_metrics`."""
    with OutputFolder(cfg) as folder:
        train_set, test_set = build_datasets(cfg)
        num_images = len(train_set)
        cfg = fit_classifier_schedule(cfg, comm.get_world_size(), num_images)
        options = cfg.CLASSIFICATION
        source = options.ROOT if options.DATASET == "imagefolder" else options.DATASET
        announce(cfg, source, num_images, train_set.classes, evaluates=True)
        classifier = _classifier(cfg)
        model = LossOfClassifier(classifier, cfg)
        if budget := budget_loss(cfg, classifier):
            add_budget_loss(model, budget)
        test_loader = build_test_loader(cfg, test_set)
        cosine = cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"
        trainer = Trainer(
            cfg,
            model,
            build_train_loader(cfg, train_set),
            evaluate=lambda: classifier_metrics(classifier, test_loader, cfg.MODEL.DEVICE),
            metric="top1",
            schedule=lr_multiplier(cfg) if cosine else None,
            hook=TrainingAccuracy(model, num_images) if comm.is_main_process() else None,
            saved=classifier,
            accumulation=options.ACCUMULATION,
        )
        return trainer.run(folder, resume=resume)


def evaluate_classifier(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """The :func:`classifier_metrics` on the validation images, of ``MODEL.WEIGHTS``, or of the last
    checkpoint in ``OUTPUT_DIR`` if ``resume``.

    Raises:
        UserError: the checkpoint has not this classifier's head, or as :func:`train_classifier`.
    """
    check_solver(cfg)
    with OutputFolder(cfg) as folder:
        model = _classifier(cfg)
        compile_backbone(cfg, model)
        checkpointer = DGNetCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            needed="a classifier's checkpoint, of CLASSIFICATION.NUM_CLASSES classes",
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        _, test_set = build_datasets(cfg)
        folder.open()
        return classifier_metrics(model, build_test_loader(cfg, test_set), cfg.MODEL.DEVICE)


def _classifier(cfg: CfgNode) -> DGNetClassifier:
    model = build_classifier(cfg).to(cfg.MODEL.DEVICE)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
