"""Run the study: is dynamic wiring of use, on a scale that two cores can do?

Each arm of studies/experiments.py is trained with each seed, in a process of one thread. Writes
study.md, study.json and images/study.png. Finished runs are kept and interrupted ones go on where
they stopped; a run whose config has changed begins anew. After a change of the code, remove
--output. `--scale tiny` shows that everything works; its figures mean nothing.

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

import arguments

from studies import ROOT
from studies.experiments import EXPERIMENTS, RESULT, SCALES, Run


def folder_of(run: Run, output: Path) -> Path:
    """Where a run's files are: runs whose configs differ have different folders."""
    from dgnet_det.data import load_cfg_with_data

    text = json.dumps(SCALES[run.scale].num_scenes)
    for command in filter(None, (run.classifier(), run.detector())):
        text += load_cfg_with_data(command[1], command[2:]).dump()
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return output.resolve() / run.experiment / f"{run.arm}-seed{run.seed}-{digest}"


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
    parser.add_argument(
        "--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME",
        help=f"of {', '.join(EXPERIMENTS)} (default: all)",
    )  # fmt: skip
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
    parser.add_argument(
        "--output", type=Path, default=Path("output/study"), metavar="FOLDER",
        help="of the runs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="of the page (default: --output)"
    )
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.jobs < 1:
        parser.error("--seeds and --jobs: at least 1")

    from dgnet_det.errors import UserError
    from dgnet_det.utils.files import write_json
    from studies.report import write_report
    from studies.scenes import write_composed_scenes
    from studies.tree_crowns import find_photographs, write_tree_crowns

    if "tree_crowns" in args.experiments and not Path("datasets/tree_crowns").exists():
        write_tree_crowns(Path("datasets/tree_crowns"), find_photographs())
    if "scenes" in args.experiments:
        write_composed_scenes(Path("datasets/composed_scenes"), SCALES[args.scale].num_scenes)
    runs = [
        Run(experiment, arm, seed, args.scale)
        for seed in range(args.seeds)
        for experiment in args.experiments
        for arm in EXPERIMENTS[experiment].arms
        if arm in args.arms
    ]
    folders = {run: folder_of(run, args.output) for run in runs}
    failed = perform_all(folders, args.jobs)
    results = [folder / RESULT for folder in folders.values()]
    words = shlex.join(sys.argv[1:] if argv is None else argv)
    study = {
        "command": f"python -m studies.run_study {words}".strip(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": [json.loads(result.read_text()) for result in results if result.exists()],
    }
    report = args.report or args.output
    write_json(report / "study.json", study)
    write_report(report, study)
    print(f"written to {report / 'study.md'}")
    if failed:
        raise UserError(f"{len(failed)} runs failed, see {' '.join(map(str, failed))}")


if __name__ == "__main__":
    arguments.run(main)
