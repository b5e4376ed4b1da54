"""Train or evaluate a detector.

Examples:
    C=configs/COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x.yaml
    %(prog)s --config-file $C --num-gpus 8
    %(prog)s --config-file $C --num-gpus 8 --resume
    %(prog)s --config-file $C --eval-only MODEL.WEIGHTS output/model_final.pth
    %(prog)s --config-file $C SOLVER.EPOCHS 50 \\
        DATASETS.TRAIN_JSON mine/train.json DATASETS.TRAIN_IMAGES mine/train \\
        DATASETS.VAL_JSON mine/val.json DATASETS.VAL_IMAGES mine/val

KEY VALUE pairs override the config. What they leave open follows from the YAML's SOLVER keys:
learning rate and schedule scale to the batch and to SOLVER.EPOCHS. The values are printed, and
written to OUTPUT_DIR/config.yaml; the curves are drawn to OUTPUT_DIR/training.png at the end.
"""

from collections.abc import Sequence

from dgnet_cli import arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, check config and data, fit the schedule, then launch the
    processes."""
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the detector")
    parser.add_training()
    args = parser.parse_args(argv)

    from dgnet_det.config import read_yaml, with_own_weights
    from dgnet_det.data import check_datasets, load_cfg_with_data
    from dgnet_det.engine.detection import evaluate_detector, train_detector, training_images
    from dgnet_det.engine.schedule import fit_schedule
    from dgnet_det.errors import UserError

    opts = with_own_weights(args.config_file, args.opts) if args.eval_only else args.opts
    cfg = load_cfg_with_data(args.config_file, opts)
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
        images = len(training_images(cfg))
        recipe, given = read_yaml(args.config_file), args.opts[::2]
        cfg = fit_schedule(cfg, arguments.processes(args), images, recipe=recipe, given=given)
    arguments.launch(evaluate_detector if args.eval_only else train_detector, cfg, args)
