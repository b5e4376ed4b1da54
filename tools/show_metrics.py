#!/usr/bin/env python
"""Print COCO box metrics that tools/train_net.py --json wrote, one row per file.

Example:
    tools/show_metrics.py output/demo/metrics.json output/demo/metrics-plain.json
"""

import argparse
import json
from collections.abc import Sequence

from tabulate import tabulate

from dgnet_det.errors import UserError, run_tool

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON of tools/train_net.py")
    rows = []
    for path in parser.parse_args(argv).files:
        try:
            with open(path, encoding="utf-8") as file:
                metrics = json.load(file)["bbox"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: no metrics of tools/train_net.py --json in it") from error
        rows.append([path, *(metrics[column] for column in COLUMNS)])
    print(tabulate(rows, headers=["metrics in %", *COLUMNS], floatfmt=".1f", missingval="–"))


if __name__ == "__main__":
    run_tool(main)
