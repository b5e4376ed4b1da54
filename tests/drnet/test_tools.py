"""The tools on a small DRNet-style detector whose choices follow the image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coco_sets import Split
from helpers.configs import ROOT
from helpers.detectors import SMALL
from helpers.routed import choose_at_random, images, routed_backbone
from helpers.static_networks import MOBILENET, saved
from PIL import Image
from torch import nn

from dgnet_cli import analyze_model, convert_checkpoint, demo, export_model, wiring_report
from dgnet_det.analysis.benchmark import draw_edges
from dgnet_det.analysis.counts import backbone_counts, path_counts
from dgnet_det.config import load_cfg
from dgnet_det.data import load_cfg_with_data
from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.evaluation.interventions import router_hooks
from dgnet_det.export.predictor import load_predictor
from dgnet_det.modeling.backbone.mobilenetv2 import InvertedResidualNode
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dgnet_of, record_decisions, routed_stages

CONFIG = str(ROOT / "configs/COCO-Detection/faster_rcnn_DR_MobileNetV2_FPN_1x.yaml")
CELLS = str(ROOT / "configs/COCO-Detection/faster_rcnn_DR_cells_FPN_1x.yaml")


@torch.no_grad()
def choose_by_contrast(model: nn.Module, stage: RoutedStage, files: list[Path]) -> None:
    """Move and stretch a stage's logits until images on both sides of their median choose
    differently, far from the threshold."""
    (router,) = stage.routers.values()
    logits: list[torch.Tensor] = []
    with router.register_forward_hook(lambda *args: logits.append(args[2].flatten())):
        for file in files:
            image = torch.tensor(np.asarray(Image.open(file))).permute(2, 0, 1)
            model([{"image": image}])
    seen = torch.stack(logits)
    scale = 10 / seen.std(dim=0)
    router.linear.bias.sub_(seen.quantile(0.5, dim=0)).mul_(scale)
    router.linear.weight.mul_(scale[:, None])


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Split]:
    """The words that name a detector, and images of different contrast."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("routed")
    model = build_model(load_cfg(CONFIG, [*SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", "1"]))
    choose_at_random(model)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    split = Split(folder, "val", 0, number=6)
    for k in range(1, 7):
        pixels = np.asarray(Image.open(split.path(k)), int) // k + 20 * k
        Image.fromarray(pixels.astype(np.uint8)).save(split.path(k))
    for stage in [s for s in routed_stages(model.eval()).values() if s.routers]:
        choose_by_contrast(model, stage, [split.path(k) for k in range(1, 7)])
    torch.save({"model": model.state_dict(), "class_names": ["kite"]}, folder / "model.pth")
    data = ["DATASETS.VAL_JSON", str(split.json), "DATASETS.VAL_IMAGES", str(split.images)]
    weights = ["MODEL.WEIGHTS", str(folder / "model.pth"), "DATALOADER.NUM_WORKERS", "0"]
    return ["--config-file", CONFIG, *SMALL, *data, *weights], split


def test_the_report_shows_choices_and_their_use(
    detector: tuple[list[str], Split], tmp_path: Path
) -> None:
    words, split = detector
    page, figures = tmp_path / "page.html", tmp_path / "page.json"
    options = ["--dataset", str(split.json), "--output", str(page), "--json", str(figures)]
    wiring_report.main([*words, *options, "--examples", "2", "--confidence", "0.01"])
    report = json.loads(figures.read_text())
    assert page.read_text().count("data:image") == 3
    varying = [row for row in report["connections"].values() if any(0 < x < 1 for x in row)]
    assert report["connections_that_vary"] == len(varying) > 0
    unused = report["unused_branches"]
    assert len(unused) == sum(row.count(0) for row in report["connections"].values())
    assert all(1 <= sum(row) <= 2 for row in report["connections"].values())
    share = report["share_of_dearest"]
    assert share["min"] < share["mean"] < share["max"] <= 1
    # What ran is counted by operators; here by the branches' own counts.
    model = load_predictor(load_cfg_with_data(CONFIG, words[2:])).model
    with record_decisions(model) as choices:
        model([{"image": torch.zeros(3, 96, 128)}])
    assert len(report["connections"]) == sum(len(c.rows) for c in choices.values())
    assert set(report["interventions"]["ap"]) == {"own", "mean", "other"}


def test_interventions_replace_the_choice() -> None:
    backbone, x = routed_backbone("mobilenetv2"), images()
    chosen: dict[str, torch.Tensor] = {}
    with router_hooks(backbone, lambda name, choice: chosen.update({name: choice})):
        backbone(x)
    frequent = {name: choice.mean(dim=0, keepdim=True) for name, choice in chosen.items()}
    with (
        router_hooks(backbone, lambda name, choice: frequent[name].expand_as(choice)),
        record_decisions(backbone) as choices,
    ):
        backbone(x)
    for name, of_stage in choices.items():
        for row in range(len(of_stage.rows)):
            most = chosen[f"{name}.routers.block-identity"][:, row].sum(dim=0).argmax()
            assert (of_stage.gate[:, row].argmax(dim=1) == most).all()


def test_the_demo_draws_choices(detector: tuple[list[str], Split], tmp_path: Path) -> None:
    words, split = detector
    demo.main([*words, "--input", str(split.path(1)), "--wiring", "--output", str(tmp_path)])
    (record,) = json.loads((tmp_path / "detections.json").read_text())["images"]
    assert all(sum(row.values()) == pytest.approx(1) for row in record["choices"].values())
    whole = Image.open(tmp_path / record["picture"])
    assert whole.width > 900


@pytest.mark.parametrize("suffix", ["ts", "onnx"])
def test_exported_detectors_choose_for_each_image(
    suffix: str, detector: tuple[list[str], Split], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The tool compares the file with the detector on every image."""
    words, split = detector
    kind = {"ts": "torchscript", "onnx": "onnx"}[suffix]
    export_model.main(
        [*words, "--format", kind, "--output", str(tmp_path / f"x.{suffix}"),
         "--input", str(split.images)]
    )  # fmt: skip
    assert "differed by up to 0\n" not in capsys.readouterr().out


def test_converted_static_weights_start_as_the_static_network(tmp_path: Path) -> None:
    source, target = saved(MOBILENET.build().state_dict(), tmp_path / "x.pth"), tmp_path / "y.pth"
    opts = ["MODEL.DEVICE", "cpu", *SMALL]
    convert_checkpoint.main([source, str(target), "--config-file", CONFIG, *opts])
    model = build_model(load_cfg(CONFIG, opts)).eval()
    missing = model.load_state_dict(torch.load(target, weights_only=True)["model"], strict=False)
    left = [name for name in missing.missing_keys if "bottom_up" in name]
    assert all(".routers." in name for name in left)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = dgnet_of(model)(image), MOBILENET.features(image)
    for name, feature in theirs.items():
        torch.testing.assert_close(ours[name], feature, rtol=1e-4, atol=1e-4)


def test_paths_by_hand() -> None:
    """Skipping leaves out a block; cells have one branch of five."""
    size = (64, 64)
    skip = routed_backbone("mobilenetv2", norm="BN")
    paths = path_counts(skip, size)
    plain = MOBILENET.dgnet(norm="BN", edge_weights="none")
    routers = sum(
        router.hidden.weight.numel() + router.linear.weight.numel()
        for stage in routed_stages(skip).values()
        for router in stage.routers.values()
    )
    static = backbone_counts(plain, size)
    assert paths["dearest"].conv_macs == static.conv_macs
    assert paths["dearest"] == backbone_counts(skip, size)
    assert paths["dearest"].activations > static.activations
    saved_params = paths["dearest"].params - paths["cheapest"].params
    skippable = [
        node
        for node in skip.modules()
        if isinstance(node, InvertedResidualNode) and node.use_res_connect
    ]
    assert saved_params == sum(p.numel() for node in skippable for p in node.parameters())
    assert routers < paths["cheapest"].params

    cells = path_counts(routed_backbone("cell", norm="BN"), size)
    only = routed_backbone("cell", norm="BN", branches=["sep5x5"])
    assert cells["dearest"].conv_macs == backbone_counts(only, size).conv_macs
    none = routed_backbone("cell", norm="BN", branches=["identity"])
    assert cells["cheapest"].conv_macs == backbone_counts(none, size).conv_macs
    assert not path_counts(only, size)


def test_analyze_prints_the_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tasks", "parameter", "flop", "structure", "--json", str(tmp_path / "x.json")]
    small = ["--input-size", "64", "64", *SMALL, "MODEL.DGNET.FAMILY", "cell"]
    analyze_model.main(["--config-file", CELLS, *options, *small])
    paths = json.loads((tmp_path / "x.json").read_text())["paths"]
    macs = [paths[name]["macs"] for name in ("cheapest", "mean", "dearest")]
    assert macs == sorted(macs)
    assert "| dearest path |" in " ".join(capsys.readouterr().out.split())


def test_drawn_choices_skip_a_share() -> None:
    backbone = routed_backbone("mobilenetv2")
    draw_edges(backbone, 4, closed=0.0, skipped=0.5)
    with record_decisions(backbone) as choices:
        backbone(images(4))
    gate = torch.cat([of_stage.gate for of_stage in choices.values()], dim=1)
    assert gate[:, :, 1].sum(dim=1).tolist() == [5.0] * 4
    assert not torch.equal(gate[0], gate[1])
