"""Compare networks that route with pruned ones.

Writes routing.md, routing.json and images/routing.png of all runs that are finished, also of those
that the routing.json at hand holds. Finished runs are kept, interrupted ones go on where they
stopped: so several commands with other seeds may work on one --output. A run takes one to six
minutes of one core. After a change of the code, remove --output and routing.json.

Examples:
    python -m studies.routing --report docs
    python -m studies.routing --experiments copies --seeds 0
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dgnet_cli import arguments
from dgnet_det.utils.environment import describe_environment
from dgnet_det.utils.files import write_json
from studies.routing import Run, domains, tree_crowns
from studies.routing.report import render, write_report
from studies.runs import RESULT, add_options, take_over

EXPERIMENTS = {**dict.fromkeys(domains.SETTINGS, domains), "tree_crowns": tree_crowns}
BUDGETS = {name: setting.budgets for name, setting in domains.SETTINGS.items()}
BUDGETS["tree_crowns"] = tree_crowns.BUDGETS


def perform(run: Run, output: Path, more: Sequence[str]) -> None:
    """Train and examine one network. The pruned one follows the routed one's choices."""
    folder = output / run.name
    if (folder / RESULT).exists():
        print(f"{run.name}: finished before", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    pruned: list[str] = []
    if run.arm == "pruned":
        routed = output / run._replace(arm="routed").name / RESULT
        pruned = json.loads(routed.read_text())["rarer_branches"]
    figures = EXPERIMENTS[run.experiment].perform(run, folder, pruned, more)
    result = {**run._asdict(), **figures, "environment": describe_environment()}
    write_json(folder / RESULT, result)
    print(f"{run.name}: finished", flush=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != RESULT:
            path.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, train, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, EXPERIMENTS, "output/routing")
    parser.add_argument(
        "--budgets", type=float, nargs="+", metavar="SHARE",
        help="of the multiply-adds; 1: no budget (default: the experiment's)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="K", help="default: %(default)s"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of all configs"
    )
    args = parser.parse_args(argv)
    report = args.report or args.output
    take_over(
        report / "routing.json",
        lambda result: args.output / Run(*(result[name] for name in Run._fields)).name,
    )
    for name in args.experiments:
        experiment = EXPERIMENTS[name]
        experiment.write_data()
        for seed in args.seeds:
            perform(Run(name, "plain", 1.0, seed), args.output, args.opts)
            for budget in args.budgets or BUDGETS[name]:
                perform(Run(name, "routed", budget, seed), args.output, args.opts)
                if budget < 1:
                    perform(Run(name, "pruned", budget, seed), args.output, args.opts)
    words = " ".join(sys.argv[1:] if argv is None else argv)
    study = {
        "command": f"python -m studies.routing {words}".strip(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": [
            json.loads(path.read_text()) for path in sorted(args.output.glob(f"*/*/{RESULT}"))
        ],
    }
    write_report(report, study)
    print(render(study))


if __name__ == "__main__":
    arguments.run(main)
