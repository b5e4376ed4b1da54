#!/usr/bin/env python
"""Write the default detection set: tree crowns in aerial photographs.

Takes the two photographs and their human-drawn boxes from the installed package `deepforest`, cuts
them into 256 x 256 tiles and writes PNG files and COCO JSON for the datasets `tree_crowns_train`
and `tree_crowns_val`. The bottom quarter of both photographs is held out for validation, with a
gap of 64 pixels between the splits. Running it again writes the same again.

Example:
    pip install --no-deps deepforest==2.1.0
    python studies/prepare_tree_crowns.py
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dgnet_det.data.catalog import TREE_CROWNS, datasets_root
from dgnet_det.errors import run_tool
from studies.tree_crowns import find_photographs, write_tree_crowns


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(datasets_root()),
        help="folder of the datasets; training looks in $DETECTRON2_DATASETS, else in ./datasets"
        " (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    counts = write_tree_crowns(args.root, find_photographs())
    for split, count in counts.items():
        print(f"{TREE_CROWNS}_{split}: {count.tiles} tiles, {count.boxes} boxes")
    print(f"written to {args.root / TREE_CROWNS}")


if __name__ == "__main__":
    run_tool(main)
