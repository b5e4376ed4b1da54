"""Counts against the paper's table, a count by hand, fvcore's, and what closed edges save."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, parameter_count
from helpers.configs import ROOT
from helpers.narrow import NARROW, R_18, close_edges, narrow_r18
from PIL import Image

from dgnet_cli.analyze_model import main
from dgnet_det.analysis.counts import (
    ImageCounter,
    backbone_counts,
    build_for_analysis,
    model_counts,
)
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.modeling.observation import dgnet_of

COCO = ROOT / "configs/COCO-Detection"
SMALL_HEADS = [
    "MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
]  # fmt: skip


def analyze(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of tools/analyze_model.py."""
    main([*arguments[:2], "--json", str(tmp_path / "out.json"), *arguments[2:]])
    return json.loads((tmp_path / "out.json").read_text())


def test_the_tool_reports_the_parts_of_a_detector(tmp_path: Path) -> None:
    report = analyze(
        tmp_path,
        *("--config-file", R_18, "--tasks", "parameter", "flop", "structure"),
        *("--input-size", "64", "64", *NARROW),
    )
    assert report["input_size"] == [64, 64]
    # 64 is a multiple of 32: the detector does not pad it.
    parts = report["model"]["parts"]
    assert parts["backbone"] == report["backbone"]
    assert all(isinstance(count, int) for count in report["backbone"].values())
    for count in ("params", "macs"):
        assert report["model"][count] == sum(part[count] for part in parts.values())
    assert [stage["edges"] for stage in report["structure"]] == [6, 6, 6, 6]


def test_counts_by_hand() -> None:
    # A ResNet-18 of 8, 16, 32, 64 channels, paper wiring, 96 x 64 pixels. The stem halves them.
    channels, pixels = 8, 48 * 32
    conv = 7 * 7 * 3 * 8 * pixels
    outputs = 8 * pixels
    routers = gathered = 0
    params = 7 * 7 * 3 * 8 + 2 * 8
    for out_channels in (8, 16, 32, 64):
        # Edge 0 -> 1 weighs the raw input, the other five of the 4-node graph the stage's outputs.
        gathered += channels * pixels + 5 * out_channels * pixels // 4
        pixels //= 4
        weights = (
            channels * out_channels  # projection
            + 9 * channels * out_channels
            + 3 * 9 * out_channels**2
        )
        conv += weights * pixels
        # Nodes 0, 1, 2 route to 3, 2, 1 later nodes: pooling, then a linear layer.
        routers += 3 * out_channels * pixels + (3 + 2 + 1) * out_channels
        outputs += 5 * out_channels * pixels + 3 * out_channels + (3 + 2 + 1)
        thresholds = 3
        params += weights + 5 * 2 * out_channels + (3 + 2 + 1) * (out_channels + 1) + thresholds
        channels = out_channels

    backbone = dgnet_of(narrow_r18())
    counts = backbone_counts(backbone, (96, 64))
    assert counts.conv_macs == conv
    assert counts.macs == conv + routers + gathered
    assert counts.activations == outputs
    assert parameter_count(backbone)[""] == params


@pytest.mark.parametrize("edge_weights", ["dynamic", "static", "none"])
def test_convolutions_and_activations_equal_those_of_fvcore(edge_weights: str) -> None:
    # An odd size, grouped convolutions, the residual wiring.
    cfg = load_cfg(
        str(COCO / "faster_rcnn_DG_MobileNetV2_residual_FPN_1x.yaml"),
        [*SMALL_HEADS, "MODEL.DGNET.EDGE_WEIGHTS", edge_weights],
    )
    backbone = dgnet_of(build_for_analysis(cfg))
    image = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        expected = FlopCountAnalysis(backbone, image).by_operator()
        activations = ActivationCountAnalysis(backbone, image).total()
    counts = backbone_counts(backbone, (75, 101))
    assert counts.conv_macs == expected["conv"]
    assert counts.activations == activations
    if edge_weights == "none":
        assert counts.macs == counts.conv_macs


def test_static_resnet_50_has_its_published_activations() -> None:
    # "Designing Network Design Spaces", Table: ResNet-50 has 11.1 M activations at 224 x 224.
    cfg = load_cfg(str(COCO / "faster_rcnn_R_50_FPN_1x.yaml"), SMALL_HEADS)
    counts = backbone_counts(dgnet_of(build_for_analysis(cfg)), (224, 224))
    assert counts.activations / 1e6 == pytest.approx(11.1, abs=0.05)


def test_closed_edges_save_their_sums_and_absent_nodes_their_blocks_and_routers() -> None:
    model = narrow_r18()
    image, count = torch.randint(0, 256, (3, 64, 64)), ImageCounter(model)
    everything = count(image)
    assert everything.size == (64, 64)
    assert everything.ran == everything.all_open

    # res4: 32 channels, 4 x 4. Node 2 loses all its inputs, so 2 -> 3 is closed with it.
    close_edges(model, "res4.0", (0, 2), (1, 2))
    counts = count(image)
    block = 2 * 9 * 32**2 * 16
    router = 32 * 16 + 32
    edges = 3 * 32 * 16
    assert counts.all_open == everything.all_open
    assert everything.ran.conv_macs - counts.ran.conv_macs == block
    assert everything.ran.macs - counts.ran.macs == block + router + edges

    # res3: 0 -> 1 carries the raw input, 8 channels, 16 x 16. Node 1 is absent.
    close_edges(model, "res3.0", (0, 1))
    before, counts = counts, count(image)
    block = 9 * (8 * 16 + 16 * 16) * 64
    router = 16 * 64 + 2 * 16
    edges = 8 * 16 * 16 + 2 * 16 * 64
    assert before.ran.macs - counts.ran.macs == block + router + edges


def test_residual_wiring_saves_edges_alone() -> None:
    model = narrow_r18("MODEL.DGNET.WIRING", "residual")
    backbone, image = dgnet_of(model), torch.randint(0, 256, (3, 64, 64))
    for parameter in (p for name, p in backbone.named_parameters() if "gammas" in name):
        parameter.data.fill_(0.1)
    count = ImageCounter(model)
    everything = count(image)
    assert everything.ran == everything.all_open
    close_edges(backbone, "res3.0", (0, 2), (1, 3))
    counts = count(image)
    assert everything.ran.conv_macs == counts.ran.conv_macs
    assert everything.ran.macs - counts.ran.macs == 2 * 16 * 8 * 8


def test_model_size_is_padded_and_backbone_size_is_not() -> None:
    model = narrow_r18()
    parts = model_counts(model, (60, 50))
    assert parts["backbone"] == backbone_counts(dgnet_of(model), (64, 64))
    assert backbone_counts(dgnet_of(model), (60, 50)).macs < parts["backbone"].macs


def test_freezing_changes_no_count() -> None:
    # Freezing turns BN into FrozenBN, whose scale and shift are no parameters.
    cfg = load_cfg(R_18, [*NARROW, "MODEL.BACKBONE.FREEZE_AT", "2"])
    frozen = parameter_count(dgnet_of(build_model(cfg)))[""]
    counted = parameter_count(dgnet_of(build_for_analysis(cfg)))[""]
    assert counted == parameter_count(dgnet_of(narrow_r18()))[""] > frozen


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three noise images of different shapes."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(64, 64), (64, 100), (130, 64)]):
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_images_of_a_folder(tmp_path: Path, images: Path) -> None:
    model = narrow_r18()
    close_edges(model, "res3.0", (0, 2))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    report = analyze(
        tmp_path,
        *("--config-file", R_18, "--tasks", "structure", "--input", str(images)),
        *NARROW,
        *("MODEL.WEIGHTS", str(tmp_path / "model.pth")),
    )
    dynamic = report["dynamic"]
    sizes = [tuple(image["padded_size"]) for image in dynamic["images"]]
    assert sizes == [(64, 64), (64, 128), (160, 64)]
    for image, (height, width) in zip(dynamic["images"], sizes, strict=True):
        assert image["all_open_macs"] == backbone_counts(dgnet_of(model), (height, width)).macs
        assert image["all_open_macs"] - image["macs"] == 16 * height * width // 64
    macs = [image["macs"] for image in dynamic["images"]]
    assert dynamic["macs"]["mean"] == pytest.approx(np.mean(macs))
    assert dynamic["macs"]["std"] == pytest.approx(np.std(macs))


def test_classifier_config(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = str(ROOT / "configs/ImageNet-Classification/DG_R_18.yaml")
    report = analyze(
        tmp_path,
        *("--config-file", config, "--tasks", "parameter", "flop", "activation", "structure"),
        *("MODEL.DEVICE", "cpu"),
    )
    assert report["input_size"] == [224, 224]
    assert report["model"]["params"] / 1e6 == pytest.approx(11.700, abs=0.001)
    assert report["model"]["conv_macs"] / 1e6 == pytest.approx(1826.41, abs=0.01)
    assert report["model"]["parts"]["head"] == {
        "params": 512 * 1000 + 1000, "conv_macs": 0, "macs": 512 * 1000, "activations": 1000,
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "1826.406" in printed
    for term in report["counted"]:
        assert f"{term}: " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input-size", "0", "64"], "--input-size"),
        (["--dataset", "no_such"], "no_such"),
        (["--input", "no/such/folder"], "no/such/folder"),
        (["--input", ".", "MODEL.DGNET.EDGE_WEIGHTS", "none"], "EDGE_WEIGHTS none"),
        (["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"], "MODEL.BACKBONE.NAME"),
        (["MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        main(["--config-file", R_18, "--tasks", "structure", *arguments])
    assert "\n" not in str(error.value)
