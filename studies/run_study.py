"""Run the study: does dynamic wiring gain where images differ?

Each arm of studies/experiments.py is trained with each seed, in a process of one thread. Writes
study.md, study.json and images/study.png. Finished runs are kept, also those that the study.json
at hand holds, and all of them are on the page. After a change of the code, remove --output and
study.json.

Examples:
    python -m studies.run_study --report docs
    python -m studies.run_study --experiments domains --arms plain static dynamic \\
        --domains 8 --epochs 20 --seeds 0 1 2 3 4
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgnet_cli import arguments
from studies import ROOT
from studies.experiments import DOMAINS, EPOCHS, EXPERIMENTS, Run
from studies.runs import RESULT, add_options, take_over

ARMS = ("plain", "se", "structure", "static", "dynamic", "residual-static", "residual-dynamic")


def run_of(result: dict[str, Any]) -> Run:
    """The run of what it wrote."""
    return Run(*(result[name] for name in Run._fields))


def perform_all(runs: Sequence[Run], output: Path, jobs: int) -> list[Path]:
    """Run what is not finished, ``jobs`` at a time; the logs of the runs that failed."""
    pending = [run for run in runs if not (output / run.name / RESULT).exists()]
    print(f"{len(runs) - len(pending)} of {len(runs)} runs are finished", flush=True)
    running: dict[Run, subprocess.Popen] = {}
    failed, done, total = [], 0, len(pending)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        while pending or running:
            while pending and len(running) < jobs:
                run = pending.pop(0)
                folder = output / run.name
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / "log.txt").open("a") as log:
                    running[run] = subprocess.Popen(
                        [sys.executable, "-m", "studies.one_run", *map(str, run), str(folder)],
                        env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT,
                    )  # fmt: skip
            time.sleep(0.2)
            for run, process in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    done += 1
                    print(f"[{done}/{total}] {run.name}{': failed' * bool(process.returncode)}")
                    if process.returncode:
                        failed.append(output / run.name / "log.txt")
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
    arms = list(dict.fromkeys(arm for names in EXPERIMENTS.values() for arm in names))
    default = [*ARMS, "none"]
    parser.add_argument(
        "--arms", nargs="+", choices=arms, default=default, metavar="NAME",
        help=f"of {', '.join(arms)} (default: {' '.join(default)})",
    )  # fmt: skip
    for name, values in (("domains", DOMAINS), ("epochs", EPOCHS), ("seeds", range(5))):
        text = " ".join(map(str, values))
        parser.add_argument(
            f"--{name}", nargs="+", type=int, default=list(values), metavar="N",
            help=f"default: {text}",
        )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N",
        help="runs at a time (default: the number of cores)",
    )  # fmt: skip
    args = parser.parse_args(argv)

    from dgnet_det.data.classification import fashion_mnist
    from dgnet_det.errors import UserError
    from dgnet_det.utils.files import write_json
    from studies import mixed_kinds
    from studies.report import write_report

    fashion_mnist("train")  # downloads it once
    if "kinds" in args.experiments and not mixed_kinds.FOLDER.exists():
        mixed_kinds.write_mixed_kinds(mixed_kinds.FOLDER, mixed_kinds.NUM_TILES)
    runs = []
    for seed in args.seeds:
        for experiment in args.experiments:
            sizes = [(d, e) for e in args.epochs for d in args.domains]
            for arm in (arm for arm in args.arms if arm in EXPERIMENTS[experiment]):
                for size in sizes if experiment == "domains" else [(0, 0)]:
                    runs.append(Run(experiment, arm, seed, *size))
    report, output = args.report or args.output, args.output.resolve()
    take_over(report / "study.json", lambda result: output / run_of(result).name)
    failed = perform_all(runs, output, args.jobs)
    words = shlex.join(sys.argv[1:] if argv is None else argv)
    study = {
        "command": f"python -m studies.run_study {words}".strip(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": [json.loads(path.read_text()) for path in sorted(output.glob(f"*/*/{RESULT}"))],
    }
    write_json(report / "study.json", study)
    write_report(report, study)
    print(f"written to {report / 'study.md'}")
    if failed:
        raise UserError(f"{len(failed)} runs failed, see {' '.join(map(str, failed))}")


if __name__ == "__main__":
    arguments.run(main)
