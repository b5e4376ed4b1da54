"""Write the demo's detection set: tree crowns in aerial photographs.

Takes two photographs and their human-drawn boxes from the installed package `deepforest`, cuts them
into 256 x 256 tiles and writes PNG files and COCO JSON. The bottom quarter of both photographs is
held out for validation, with a gap of 64 pixels between the splits. Running it again writes the
same again.

Example:
    pip install --no-deps deepforest==2.1.0
    python -m studies.prepare_tree_crowns
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import arguments


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("datasets/tree_crowns"),
        metavar="FOLDER",
        help="default: %(default)s, where configs/Tree-Crowns looks",
    )
    args = parser.parse_args(argv)

    from studies.tree_crowns import find_photographs, write_tree_crowns

    written = write_tree_crowns(args.output, find_photographs())
    for split, (tiles, boxes) in written.items():
        print(f"{split}: {tiles} tiles, {boxes} boxes")
    print(f"written to {args.output}")


if __name__ == "__main__":
    arguments.run(main)
