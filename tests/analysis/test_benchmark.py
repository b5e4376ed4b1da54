"""The benchmark's bookkeeping. Nothing is timed here."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from helpers.configs import ROOT

from dgnet_cli.benchmark import main
from dgnet_det.analysis.benchmark import (
    Contestant,
    Measurement,
    Workload,
    compare_runs,
    draw_edges,
    make_step,
    stock_config,
)
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import record_decisions

CONFIGS = ROOT / "configs" / "COCO-Detection"
SMALL = ["MODEL.WEIGHTS", "", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"]


def config(name: str, *opts: str) -> CfgNode:
    return load_cfg(str(CONFIGS / f"faster_rcnn_{name}_FPN_1x.yaml"), [*SMALL, *opts])


def test_compare_takes_pairs() -> None:
    ours, theirs = Measurement([1.0, 4.0, 3.0], 30), Measurement([2.0, 2.0, 3.0], 20)
    assert compare_runs(ours, theirs) == {
        "ratio": {"median": 1.0, "min": 0.5, "max": 2.0},
        "memory_ratio": 1.5,
    }


@pytest.mark.parametrize(
    ("name", "closed", "skipped"),
    [
        ("DG_R_18", 0.0, 0.0),
        ("DG_R_18", 0.5, 0.0),
        ("DG_R_18", 1.0, 0.0),
        ("DG_R_18", 0.0, 0.5),
        ("DG_R_18_residual", 0.0, 0.0),
        ("DG_R_18_residual", 0.5, 0.0),
    ],
)
def test_drawn_edges(name: str, closed: float, skipped: float) -> None:
    model = build_model(config(name)).backbone.eval()
    draw_edges(model, 2, closed=closed, skipped=skipped)
    with record_decisions(model) as wirings, torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    for wiring in wirings.values():
        routed = wiring.value[:, wiring.learned]
        if not closed and not skipped:
            assert (routed == 0.5).all()
        if closed == 1 and "residual" not in name:
            assert routed.ne(0).sum(dim=1).tolist() == [2, 2]  # 0 → 1, and the output's strongest
        elif closed:
            # Of two blocks' graph: 1 of 2 edges into node 2 and 2 of 3 into node 3, in the residual
            # wiring 0 of 1 and 1 of 2; 0 → 1 stays open.
            count = 1 if "residual" in name else 3
            assert routed.eq(0).sum(dim=1).tolist() == [count, count]
        if skipped:
            absent = wiring.value[:, 1:-1].eq(0).all(dim=2)
            assert absent.sum(dim=1).tolist() == [1, 1]  # of two blocks


@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("part", ["backbone", "model"])
@pytest.mark.parametrize("stock", [False, True])
def test_steps_run(mode: str, part: str, stock: bool) -> None:
    cfg = config("DG_R_18_residual")
    contestant = Contestant("x", stock_config(cfg) if stock else cfg, stock=stock)
    step = make_step(contestant, Workload(mode, part, 64, 96, 2))
    outputs = step()
    if (mode, part) == ("inference", "model"):
        assert len(outputs) == 2  # type: ignore[arg-type]
    elif mode == "inference":
        assert outputs["p2"].shape == (2, 256, 16, 24)  # type: ignore[index]


def test_stock_is_detectron2s_own() -> None:
    cfg = stock_config(config("DG_R_50"))
    assert cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
    with pytest.raises(UserError, match="stock ResNet"):
        stock_config(config("DG_MobileNetV2"))


def test_the_tool_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dg = str(CONFIGS / "faster_rcnn_DG_R_18_FPN_1x.yaml")
    out = str(tmp_path / "benchmark.json")
    twin = tmp_path / Path(dg).name  # with its name
    plain = f"_BASE_: {dg}\nMODEL:\n  DGNET:\n    EDGE_WEIGHTS: none\n    WIRING: residual\n"
    twin.write_text(plain)
    options = ["--baseline", str(twin), "--closed", "0.5", "--part", "backbone"]
    options += ["--input-size", "64", "64", "--repeats", "2", "--json", out]
    main(["--config-file", dg, *options, *SMALL, "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"])
    figures = json.loads(Path(out).read_text())
    assert list(figures["ratios"]) == [f"{dg} ÷ {twin}", "50% of edges closed ÷ full graph"]
    for ratio in figures["ratios"].values():
        assert set(ratio["ratio"]) == {"median", "min", "max"}
        assert ratio["memory_ratio"] > 0
    assert figures["environment"]["PyTorch"] == torch.__version__
    assert "50% of edges closed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--baseline", "stock", "MODEL.WEIGHTS", "nonexistent.pth"], r"nonexistent\.pth"),
        (["MODEL.WEIGHTS", ""], "give something to compare with"),
        (["--closed", "1.5", "MODEL.WEIGHTS", ""], "between 0 and 1"),
        (["--closed", "0.5", "MODEL.WEIGHTS", "x.pth"], "an untrained network"),
        (
            ["--skipped", "0.5", "MODEL.WEIGHTS", "", "MODEL.DGNET.WIRING", "residual"],
            "no node is skipped",
        ),
        (
            ["--closed", "0.5", "MODEL.WEIGHTS", "", "MODEL.DGNET.EDGE_WEIGHTS", "none"],
            "the plain network has no edges",
        ),
        (["--closed", "0.5", "0.501", "MODEL.WEIGHTS", ""], "two of them are the same"),
    ],
)
def test_mistakes_are_one_line(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        main(["--config-file", str(CONFIGS / "faster_rcnn_DG_R_18_FPN_1x.yaml"), *options])
    assert "\n" not in str(error.value)
