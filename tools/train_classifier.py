#!/usr/bin/env python
"""Train or evaluate an ImageNet-style classifier: the pretraining of a detector's backbone.

Examples:
    C=configs/ImageNet-Classification/DG_R_50.yaml
    tools/train_classifier.py --config-file $C --num-gpus 8
    tools/train_classifier.py --config-file $C --num-gpus 8 --resume
    tools/train_classifier.py --config-file $C CLASSIFICATION.ACCUMULATION 8
    tools/train_classifier.py --config-file $C --eval-only MODEL.WEIGHTS output/model_final.pth

The paper's ablation, one learned weight per edge: MODEL.DGNET.EDGE_WEIGHTS static. A warm start,
with a static network's own outputs, from what tools/convert_checkpoint.py makes of its checkpoint
with this tool's YAML: MODEL.DGNET.WIRING residual MODEL.WEIGHTS weights/static-R-50.pth.

SOLVER.IMS_PER_BATCH is the batch of all processes. KEY VALUE pairs override the config.
"""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

import arguments

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def work(cfg: "CfgNode", args: Namespace) -> None:
    """What each process does."""
    from detectron2.utils import comm

    from dgnet_det.engine.classification import evaluate_checkpoint, train
    from dgnet_det.utils.files import write_json

    results = (evaluate_checkpoint if args.eval_only else train)(cfg, resume=args.resume)
    if comm.is_main_process():
        print(f"top-1 {results['top1']:.2f} %, top-5 {results['top5']:.2f} %")
        if args.json:
            write_json(args.json, results)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train or evaluate, write the metrics."""
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the classifier")
    parser.add_training()
    args = parser.parse_args(argv)

    from dgnet_det.config import load_cfg, with_own_weights

    opts = with_own_weights(args.config_file, args.opts) if args.eval_only else args.opts
    arguments.train(work, load_cfg(args.config_file, opts), args)


if __name__ == "__main__":
    arguments.run(main)
