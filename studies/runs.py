"""What the studies' commands have in common: their options, and the runs that a page holds."""

import argparse
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

RESULT = "run.json"  # of a finished run


def add_options(parser: argparse.ArgumentParser, experiments: Collection[str], output: str) -> None:
    """Add ``--experiments``, and where runs and page are written."""
    parser.add_argument(
        "--experiments", nargs="+", choices=experiments, default=list(experiments), metavar="NAME",
        help=f"of {', '.join(experiments)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path(output), metavar="FOLDER",
        help="of the runs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="of the page (default: --output)"
    )


def take_over(study: Path, folder_of: Callable[[dict[str, Any]], Path]) -> None:
    """Count what a page's JSON file holds as finished."""
    from dgnet_det.utils.files import write_json

    for result in json.loads(study.read_text())["runs"] if study.exists() else []:
        write_json(folder_of(result) / RESULT, result)
