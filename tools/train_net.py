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

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

import arguments

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def work(cfg: "CfgNode", recipe: "CfgNode", args: Namespace) -> None:
    """What each process does."""
    from detectron2.utils import comm

    from dgnet_det.engine.trainer import evaluate, train
    from dgnet_det.utils.files import write_json

    if args.eval_only:
        results = evaluate(cfg, resume=args.resume)
    else:
        given = args.opts[::2]
        results = train(cfg, resume=args.resume, recipe=recipe, given=given)
    if args.json and comm.is_main_process():
        write_json(args.json, results)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, check config and data, then launch the processes."""
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the detector")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, without training"
    )
    parser.add_argument("--json", metavar="FILE", help="write the last evaluation's metrics here")
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes of this machine"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="K", help="this machine's")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="of the first machine, tcp://HOST:PORT"
    )
    args = parser.parse_args(argv)

    from dgnet_det.config import read_yaml
    from dgnet_det.data import check_datasets, load_cfg_with_data
    from dgnet_det.engine.launch import launch
    from dgnet_det.errors import UserError

    cfg = load_cfg_with_data(args.config_file, args.opts)
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
    with arguments.resumable(cfg.OUTPUT_DIR, resume=args.resume):
        launch(
            work,
            args.num_gpus,
            device=cfg.MODEL.DEVICE,
            machines=args.num_machines,
            machine_rank=args.machine_rank,
            url=args.dist_url,
            args=(cfg, read_yaml(args.config_file), args),
        )


if __name__ == "__main__":
    arguments.run(main)
