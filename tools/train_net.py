#!/usr/bin/env python
"""Train or evaluate a detector.

Examples:
    C=configs/COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml
    tools/train_net.py --config-file $C --num-gpus 8
    tools/train_net.py --config-file $C --num-gpus 8 --resume
    tools/train_net.py --config-file $C --eval-only MODEL.WEIGHTS output/model_final.pth
    tools/train_net.py --config-file $C SOLVER.EPOCHS 50 \\
        DATASETS.TRAIN_JSON mine/train.json DATASETS.TRAIN_IMAGES mine/train \\
        DATASETS.VAL_JSON mine/val.json DATASETS.VAL_IMAGES mine/val

Without a GPU, --num-gpus counts CPU processes. KEY VALUE pairs at the end override the config. What
they leave open follows from the YAML's SOLVER keys: learning rate and schedule scale to the batch
and to SOLVER.EPOCHS. The values are printed, and written to OUTPUT_DIR/config.yaml; the curves are
drawn to OUTPUT_DIR/training.png at the end.
"""

import argparse
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessRaisedException

from dgnet_det.checkpoint import WholeCheckpointer
from dgnet_det.config import load_cfg, read_yaml
from dgnet_det.data import check_datasets
from dgnet_det.data.classes import dataset_class_names
from dgnet_det.engine.schedule import fit_schedule
from dgnet_det.engine.trainer import Trainer, set_up, training_images
from dgnet_det.errors import UserError, run_tool, user_message
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.utils.files import write_json


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


def check_processes(cfg: CfgNode, num_gpus: int) -> None:
    """Raise UserError if the config does not suit the processes of this machine."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else None
    if available is not None and num_gpus > available:
        raise UserError(f"--num-gpus {num_gpus}: this machine has {available}")
    if available is not None and num_gpus > 1 and cfg.MODEL.DEVICE == "cpu":
        raise UserError("MODEL.DEVICE cpu: for CPU processes set CUDA_VISIBLE_DEVICES= as well")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, check config and data, then launch the processes."""
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the last evaluation's metrics here")
    args = parser.parse_args(argv)
    if not args.config_file:
        raise UserError("--config-file: name a YAML file of configs/")
    cfg = load_cfg(args.config_file, args.opts)
    check_processes(cfg, args.num_gpus)
    rcnn = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    if cfg.TEST.AUG.ENABLED and (not rcnn or cfg.MODEL.KEYPOINT_ON):
        raise UserError(
            "TEST.AUG.ENABLED: Detectron2 augments tests of R-CNN without keypoints alone; set it"
            " to False"
        )
    if not cfg.DATASETS.TEST and args.eval_only:
        raise UserError("DATASETS.TEST: empty: there is nothing to evaluate on")
    if not cfg.DATASETS.TRAIN and not args.eval_only:
        raise UserError("DATASETS.TRAIN: empty: there is nothing to train on")
    train_sets = () if args.eval_only else cfg.DATASETS.TRAIN
    check_datasets(cfg, [*train_sets, *cfg.DATASETS.TEST])
    if not args.eval_only:
        cfg = fit_schedule(
            cfg,
            args.num_gpus * args.num_machines,
            len(training_images(cfg)) if cfg.SOLVER.EPOCHS else None,
            recipe=read_yaml(args.config_file),
            given=args.opts[::2],
        )
    try:
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(cfg, args),
        )
    except ProcessRaisedException as error:
        if UserError.__name__ not in str(error):
            raise
        raise UserError(user_message(error)) from None


if __name__ == "__main__":
    run_tool(main)
