"""Run the study: is dynamic wiring of use, on a scale that two cores can do?

Each arm of studies/experiments.py is trained with each seed, in a process of one thread. Writes
study.md, study.json and images/study.png. Finished runs are kept, also those that the study.json
at hand holds, and all of them are on the page; interrupted ones go on where they stopped; a run
whose config has changed begins anew. After a change of the code, remove --output and study.json.
`--scale tiny` shows that everything works; its figures mean nothing.

Examples:
    python -m studies.run_study --report docs
    python -m studies.run_study --experiments scenes --arms plain paper-dynamic --seeds 2
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arguments

from studies import ROOT
from studies.experiments import EXPERIMENTS, SCALES, Run
from studies.runs import RESULT, add_options, take_over


def folder_of(run: Run, output: Path) -> Path:
    """Where a run's files are: runs whose configs differ have different folders. What a config
    leaves as it is by default does not count, so that a new key changes no folder."""
    from dgnet_det.config import get_cfg, leaves, load_cfg

    text, default = json.dumps(SCALES[run.scale].num_scenes), dict(leaves(get_cfg()))
    for command in filter(None, (run.classifier(), run.detector())):
        for key, value in leaves(load_cfg(command[1], command[2:])):
            if value != default[key] and key != "MODEL.DEVICE":
                text += f"{key} {value!r}\n"
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return output.resolve() / run.experiment / f"{run.arm}-seed{run.seed}-{digest}"


def finished(output: Path) -> list[dict[str, Any]]:
    """The results of all runs whose configs are today's, those of other commands too."""
    results = []
    for path in sorted(output.glob(f"*/*/{RESULT}")):
        result = json.loads(path.read_text()) | {"folder": path.parent.name}
        experiment = EXPERIMENTS.get(result["experiment"])
        run = Run(*(result[name] for name in Run._fields))
        if (
            experiment
            and run.arm in experiment.arms
            and folder_of(run, output).name == path.parent.name
        ):
            results.append(result)
    return results


def perform_all(runs: dict[Run, Path], jobs: int) -> list[Path]:
    """Run what is not finished, ``jobs`` at a time; the logs of the runs that failed."""
    pending = [run for run, folder in runs.items() if not (folder / RESULT).exists()]
    print(f"{len(runs) - len(pending)} of {len(runs)} runs are finished", flush=True)
    running: dict[Run, subprocess.Popen] = {}
    failed, done, total = [], 0, len(pending)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        while pending or running:
            while pending and len(running) < jobs:
                run = pending.pop(0)
                runs[run].mkdir(parents=True, exist_ok=True)
                with (runs[run] / "log.txt").open("a") as log:
                    running[run] = subprocess.Popen(
                        [sys.executable, "-m", "studies.one_run", *map(str, run), str(runs[run])],
                        env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT,
                    )  # fmt: skip
            time.sleep(0.2)
            for run, process in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    done += 1
                    name = f"{run.experiment}, {run.arm}, seed {run.seed}"
                    print(f"[{done}/{total}] {name}{': failed' * bool(process.returncode)}")
                    if process.returncode:
                        failed.append(runs[run] / "log.txt")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, run the arms, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, EXPERIMENTS, "output/study")
    arms = sorted({arm for experiment in EXPERIMENTS.values() for arm in experiment.arms})
    parser.add_argument(
        "--arms", nargs="+", choices=arms, default=arms, metavar="NAME",
        help=f"of {', '.join(arms)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--scale", choices=SCALES, default="full", help="default: %(default)s")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N",
        help="runs at a time (default: the number of cores)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.jobs < 1:
        parser.error("--seeds and --jobs: at least 1")

    from dgnet_det.errors import UserError
    from dgnet_det.utils.files import write_json
    from studies.report import write_report
    from studies.scenes import write_composed_scenes
    from studies.tree_crowns import FOLDER, find_photographs, write_tree_crowns

    if "tree_crowns" in args.experiments and not FOLDER.exists():
        write_tree_crowns(FOLDER, find_photographs())
    if "scenes" in args.experiments:
        write_composed_scenes(Path("datasets/composed_scenes"), SCALES[args.scale].num_scenes)
    runs = [
        Run(experiment, arm, seed, args.scale)
        for seed in range(args.seeds)
        for experiment in args.experiments
        for arm in EXPERIMENTS[experiment].arms
        if arm in args.arms
    ]
    report = args.report or args.output
    take_over(report / "study.json", lambda run: args.output / run["experiment"] / run["folder"])
    failed = perform_all({run: folder_of(run, args.output) for run in runs}, args.jobs)
    words = shlex.join(sys.argv[1:] if argv is None else argv)
    study = {
        "command": f"python -m studies.run_study {words}".strip(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": finished(args.output),
    }
    write_json(report / "study.json", study)
    write_report(report, study)
    print(f"written to {report / 'study.md'}")
    if failed:
        raise UserError(f"{len(failed)} runs failed, see {' '.join(map(str, failed))}")


if __name__ == "__main__":
    arguments.run(main)
