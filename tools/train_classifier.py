#!/usr/bin/env python
"""Train or evaluate an ImageNet-style classifier: the pretraining of a detector's backbone.

Examples:
    C=configs/ImageNet-Classification/DG_R_50.yaml
    torchrun --nproc-per-node 8 tools/train_classifier.py --config-file $C
    torchrun --nproc-per-node 8 tools/train_classifier.py --config-file $C --resume
    tools/train_classifier.py --config-file $C CLASSIFICATION.ACCUMULATION 8
    tools/train_classifier.py --config-file $C --eval-only MODEL.WEIGHTS output/model_final.pth

The paper's ablation, one learned weight per edge: MODEL.DGNET.EDGE_WEIGHTS static. A warm start,
with a static network's own outputs, from what tools/convert_checkpoint.py makes of its checkpoint
with this tool's YAML: MODEL.DGNET.WIRING residual MODEL.WEIGHTS weights/static-R-50.pth.

Processes are started by torchrun, on one machine or several: one per GPU, or CPU processes without
one. SOLVER.IMS_PER_BATCH is the batch of them all. KEY VALUE pairs at the end override the config.
"""

from collections.abc import Sequence

import arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train or evaluate, write the metrics."""
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the classifier")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, to the same result",
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, without training"
    )
    parser.add_argument("--json", metavar="FILE", help="write top1 and top5, in per cent, here")
    args = parser.parse_args(argv)

    from detectron2.utils import comm

    from dgnet_det.config import load_cfg
    from dgnet_det.engine.classification import evaluate_checkpoint, train
    from dgnet_det.engine.launch import join_processes, leave_processes
    from dgnet_det.utils.files import write_json

    cfg = load_cfg(args.config_file, args.opts)
    device = join_processes(cfg)
    with arguments.resumable(cfg.OUTPUT_DIR, resume=args.resume):
        work = evaluate_checkpoint if args.eval_only else train
        results = work(cfg, device, resume=args.resume)
    if comm.is_main_process():
        print(f"top-1 {results['top1']:.2f} %, top-5 {results['top5']:.2f} %")
        if args.json:
            write_json(args.json, results)
    leave_processes()


if __name__ == "__main__":
    arguments.run(main)
