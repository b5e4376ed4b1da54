"""Rewrite the table of docs/paper.md: this project's parameters and multiply-adds beside the
paper's.

Each number of this project is counted on the network that its YAML under
configs/ImageNet-Classification builds. The text around the table is left as it is.

Example:
    python -m studies.make_paper_table
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from dgnet_cli import arguments
from dgnet_det.analysis.counts import (
    backbone_counts,
    build_for_analysis,
    model_counts,
)
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.modeling.observation import dgnet_of
from dgnet_det.utils.files import written_whole
from studies import ROOT

CONFIGS = ROOT / "configs/ImageNet-Classification"
BEGIN = "<!-- begin: written by studies.make_paper_table -->\n"
END = "<!-- end -->\n"


class Printed(NamedTuple):
    """What the paper prints of one network: millions of parameters and of multiply-adds (Table 1),
    and the backbone's GFLOPs (Table 2)."""

    params: float
    macs: int
    gflops: int | None = None


# By network and YAML: the plain one, then the dynamic one.
PAPER = {
    "MobileNetV2-1.0": {"MobileNetV2": Printed(3.51, 299), "DG_MobileNetV2": Printed(3.58, 312)},
    "ResNet-18": {"R_18": Printed(11.69, 1813), "DG_R_18": Printed(11.71, 1826)},
    "ResNet-50": {"R_50": Printed(25.55, 4087, 174), "DG_R_50": Printed(25.62, 4125, 176)},
    "ResNet-101": {"R_101": Printed(44.54, 7799, 333), "DG_R_101": Printed(44.90, 7837, 335)},
    "ResNeXt-50-32x4d": {
        "X_50_32x4d": Printed(25.02, 4228, 181),
        "DG_X_50_32x4d": Printed(25.09, 4305, 183),
    },
    "RegNetX-600M": {"RegNetX_600M": Printed(6.19, 599), "DG_RegNetX_600M": Printed(6.22, 600)},
    "RegNetX-1600M": {
        "RegNetX_1600M": Printed(9.19, 1602),
        "DG_RegNetX_1600M": Printed(9.22, 1604),
    },
}
HEADERS = (
    "network", "", "params, M", "paper", "diff.", "mult.-adds, M", "paper", "diff.",
    "routers and sums, M", "800 × 1333, GFLOPs", "paper", "diff.",
)  # fmt: skip


def make_table() -> str:
    """The table in Markdown."""
    rows = []
    for network, configs in PAPER.items():
        for kind, (config, printed) in zip(("static", "DG"), configs.items(), strict=True):
            print(config, file=sys.stderr)
            rows.append([network, kind, *make_cells(config, printed)])
    return tabulate(rows, HEADERS, tablefmt="pipe", disable_numparse=True)


def make_cells(config: str, printed: Printed) -> list[str]:
    """The cells of one network, after its name."""
    cfg = load_cfg(str(CONFIGS / f"{config}.yaml"), ["MODEL.DEVICE", "cpu"])
    model = build_for_analysis(cfg)
    counts = model_counts(model, (224, 224))
    params = counts["total"].params / 1e6
    macs = counts["total"].conv_macs / 1e6
    routing = (counts["backbone"].macs - counts["backbone"].conv_macs) / 1e6
    at_800 = backbone_counts(dgnet_of(model), (800, 1333))
    gflops = 2 * at_800.conv_macs / 1e9
    cells = [
        *(f"{params:.3f}", f"{printed.params:.2f}", f"{params - printed.params:+.3f}"),
        *(f"{macs:.2f}", f"{printed.macs}", f"{macs - printed.macs:+.2f}"),
        *(f"{routing:.2f}", f"{gflops:.1f}"),
    ]
    if printed.gflops is None:
        return [*cells, "–", "–"]
    return [*cells, f"{printed.gflops}", f"{gflops - printed.gflops:+.1f}"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--file", type=Path, default=ROOT / "docs/paper.md", help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    if not args.file.is_file():
        raise UserError(f"{args.file}: no such file (--file)")
    before, begin, rest = args.file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{args.file}: put the lines {BEGIN!r} and {END!r} around the table")
    text = f"{before}{begin}\n{make_table()}\n\n{end}{after}"
    with written_whole(args.file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written to {args.file}")


if __name__ == "__main__":
    arguments.run(main)
