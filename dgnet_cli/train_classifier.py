"""Train or evaluate an ImageNet-style classifier: the pretraining of a detector's backbone.

Examples:
    C=configs/ImageNet-Classification/DG_R_50.yaml
    %(prog)s --config-file $C --num-gpus 8
    %(prog)s --config-file $C --num-gpus 8 --resume
    %(prog)s --config-file $C CLASSIFICATION.ACCUMULATION 8
    %(prog)s --config-file $C --eval-only MODEL.WEIGHTS output/model_final.pth

The paper's ablation, one learned weight per edge: MODEL.DGNET.EDGE_WEIGHTS static. A warm start,
with a static network's own outputs, from what dgnet convert makes of its checkpoint with this
tool's YAML: MODEL.DGNET.WIRING residual MODEL.WEIGHTS weights/static-R-50.pth.

KEY VALUE pairs override the config. SOLVER.IMS_PER_BATCH is the batch of all processes, by default
128 of each; the learning rate scales to it.
"""

from collections.abc import Sequence

from dgnet_cli import arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, fit the schedule, then launch the processes."""
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the classifier")
    parser.add_training()
    args = parser.parse_args(argv)

    from dgnet_det.config import load_cfg, read_yaml, with_own_weights
    from dgnet_det.data.classification import build_datasets
    from dgnet_det.engine.classification import evaluate_classifier, train_classifier
    from dgnet_det.engine.schedule import fit_classifier_schedule

    opts = with_own_weights(args.config_file, args.opts) if args.eval_only else args.opts
    cfg = load_cfg(args.config_file, opts)
    if not args.eval_only:
        images, processes = len(build_datasets(cfg)[0]), arguments.processes(args)
        recipe, given = read_yaml(args.config_file), args.opts[::2]
        cfg = fit_classifier_schedule(cfg, processes, images, recipe=recipe, given=given)
    arguments.launch(evaluate_classifier if args.eval_only else train_classifier, cfg, args)
