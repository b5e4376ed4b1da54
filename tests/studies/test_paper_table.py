"""docs/paper.md holds what the code counts, and that is the paper's Table 1."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.configs import ROOT
from helpers.narrow import narrow_backbone
from helpers.table_1 import TABLE_1

from dgnet_det.analysis.counts import backbone_counts
from dgnet_det.errors import UserError
from studies import make_paper_table
from studies.make_paper_table import END, PAPER

PAGE = (ROOT / "docs/paper.md").read_text(encoding="utf-8")

# The backbone's at 800 x 1333, of the static network and of DG-Net: our reading of Table 2.
GFLOPS = {
    "ResNet-50": (174.7, 176.3), "ResNet-101": (333.8, 335.4), "ResNeXt-50-32x4d": (180.7, 184.0),
}  # fmt: skip


def rows(page: str) -> dict[tuple[str, str], list[str]]:
    """The cells of the table by network and kind."""
    lines = [line for line in page.splitlines() if "| static |" in line or "| DG     |" in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(name, kind): others for name, kind, *others in cells}


def test_the_page_holds_what_the_code_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three networks: that the others are Table 1's is tested where they are built."""
    counted = ("MobileNetV2-1.0", "ResNet-18", "RegNetX-600M")
    monkeypatch.setattr(make_paper_table, "PAPER", {name: PAPER[name] for name in counted})
    copy = tmp_path / "paper.md"
    copy.write_text(PAGE, encoding="utf-8")
    make_paper_table.main(["--file", str(copy)])
    assert list(tmp_path.iterdir()) == [copy]
    written = copy.read_text(encoding="utf-8")
    expected = {key: cells for key, cells in rows(PAGE).items() if key[0] in counted}
    assert rows(written) == expected
    outside = [text.partition(END)[2] for text in (written, PAGE)]
    assert outside[0] == outside[1]


@pytest.mark.parametrize("network", PAPER)
def test_the_page_is_table_1(network: str) -> None:
    params, macs = TABLE_1[list(PAPER[network])[1]]
    cells = rows(PAGE)[network, "DG"]
    assert float(cells[0]) == pytest.approx(params, abs=0.001)
    assert float(cells[3]) == pytest.approx(macs, abs=0.01)
    for kind, expected in zip(("static", "DG"), GFLOPS.get(network, ()), strict=False):
        assert float(rows(PAGE)[network, kind][7]) == pytest.approx(expected, abs=0.05)


def test_differences_are_ours_less_the_papers() -> None:
    assert len(rows(PAGE)) == 2 * len(PAPER)
    for cells in rows(PAGE).values():
        for ours, paper, difference in (cells[0:3], cells[3:6], cells[7:10]):
            if paper == "–":
                assert difference == "–"
            else:
                # Each of the two is rounded.
                unit = 10.0 ** -len(difference.partition(".")[2])
                assert float(ours) - float(paper) == pytest.approx(float(difference), abs=unit)


def test_a_page_without_the_markers_is_refused_and_left(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(UserError, match=r"page\.md"):
        make_paper_table.main(["--file", str(page)])
    assert page.read_text() == "nothing\n"
    with pytest.raises(UserError, match=r"absent\.md"):
        make_paper_table.main(["--file", str(tmp_path / "absent.md")])


def test_what_p_pools_is_in_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 1 cannot tell P's maximum from a convolution of stride 2."""
    counts = []

    def strided(x: torch.Tensor, *, kernel_size: int, stride: int, padding: int) -> torch.Tensor:
        counts.append("strided")
        return x[:, :, ::stride, ::stride]

    for pool in (F.max_pool2d, strided):
        monkeypatch.setattr(F, "max_pool2d", pool)
        backbone = narrow_backbone("MODEL.RESNETS.NORM", "BN", "MODEL.DGNET.WIRING", "paper")
        params = sum(parameter.numel() for parameter in backbone.parameters())
        counts.append((params, backbone_counts(backbone, (224, 224))))
    pooled, *strides, not_pooled = counts
    assert strides == 4 * ["strided"]
    assert pooled == not_pooled
