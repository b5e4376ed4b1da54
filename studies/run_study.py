#!/usr/bin/env python
"""Run the miniature study: does dynamic wiring help, under identical conditions?

Trains, for each network, arm and seed, a classifier on Fashion-MNIST, converts its backbone and
fine-tunes it as Faster R-CNN with FPN on composed scenes, by the tools that stand beside this one.
Writes study.md, study.json and images/study.png. Started again, it keeps the runs that are
finished. `--scale tiny` shows in a minute or two that everything works; its figures mean nothing.

Examples:
    studies/run_study.py --report docs
    studies/run_study.py --scale tiny --seeds 1 --output /tmp/study
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dgnet_det.config import load_cfg
from dgnet_det.data import datasets_root
from dgnet_det.errors import UserError, run_tool
from dgnet_det.utils.files import write_json
from studies.design import ARMS, NETWORKS, PLAIN, SCALES, Chain, Scale
from studies.report import write_report
from studies.runs import Runner
from studies.scenes import write_composed_scenes
from studies.statistics import MAX_SEEDS

ROOT = Path(__file__).resolve().parent.parent


def describe_schedules(network: str, scale: Scale) -> dict[str, str]:
    """Length and batch of both kinds of run, for the page."""
    configs = ROOT / "configs/Study"
    classifier = load_cfg(str(configs / f"classifier_{network}.yaml"), scale.classifier)
    detector = load_cfg(str(configs / f"faster_rcnn_{network}_FPN.yaml"), scale.detector)
    epochs = classifier.CLASSIFICATION.EPOCHS
    batch = classifier.SOLVER.IMS_PER_BATCH
    return {
        "classifier_schedule": f"{epochs} epoch{'s' * (epochs > 1)}, batch {batch}",
        "detector_schedule": f"{detector.SOLVER.MAX_ITER} iterations, batch"
        f" {detector.SOLVER.IMS_PER_BATCH}",
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/study"), metavar="FOLDER",
        help="folder of the runs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="folder of the page (default: that of --output)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument(
        "--scale", choices=SCALES, default="full", help="length of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(),
        help="runs at a time, one thread each (default: the number of cores, %(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if not 1 <= args.seeds <= MAX_SEEDS:
        raise UserError(f"--seeds {args.seeds}: choose from 1 to {MAX_SEEDS}")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least 1")
    if PLAIN not in args.arms:
        raise UserError(f"--arms {' '.join(args.arms)}: add {PLAIN}, which the others go against")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Compose the scenes, run the chains, write the report."""
    args = parse(argv)
    scale = SCALES[args.scale]
    print("composing the scenes", flush=True)
    scenes = write_composed_scenes(Path(datasets_root()), scale.num_scenes)
    chains = [
        Chain(network, arm, seed)
        for seed in range(args.seeds)
        for arm in args.arms
        for network in args.networks
    ]
    results = Runner(ROOT, args.output, scale, scenes).run(chains, args.jobs)
    environments = [run["environment"] for pair in results.values() for run in pair.values()]
    report = args.report or args.output
    study = {
        "command": shlex.join(["studies/run_study.py", *(sys.argv[1:] if argv is None else argv)]),
        "date": time.strftime("%Y-%m-%d"),
        "scale": args.scale,
        "seeds": list(range(args.seeds)),
        "num_scenes": scale.num_scenes,
        **describe_schedules(args.networks[0], scale),
        "environments": [e for k, e in enumerate(environments) if e not in environments[:k]],
        "runs": [
            {
                **chain._asdict(),
                "top1": result["classification"]["metrics"]["top1"],
                "AP": result["detection"]["metrics"]["AP"],
                "AP50": result["detection"]["metrics"]["AP50"],
                "seconds": result["classification"]["seconds"] + result["detection"]["seconds"],
            }
            for chain, result in sorted(results.items(), key=lambda item: chain_order(item[0]))
        ],
    }
    write_json(report / "study.json", study)
    write_report(report, study)
    print(f"written to {report / 'study.md'}")


def chain_order(chain: Chain) -> tuple[int, int, int]:
    """By network, arm and seed, as the tables have them."""
    return list(NETWORKS).index(chain.network), list(ARMS).index(chain.arm), chain.seed


if __name__ == "__main__":
    run_tool(main)
