"""A residual DG-Net with a static network's weights is that network at step 0."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from static_networks import (
    LAYERS,
    SIZES,
    STAGES,
    Detector,
    config,
    detectron2_resnet,
    dgnet_features,
    features_by_hooks,
    randomised,
    relative_error,
    saved,
)
from torch import nn

from dgnet_det.checkpoint import DGNetCheckpointer, convert

TORCHVISION_BLOCKS = {"res2": "features.3", "res3": "features.6", "res4": "features.13"}
TORCHVISION_BLOCKS["res5"] = "features.17"
TIMM_BLOCKS = {"res2": "blocks.1", "res3": "blocks.2", "res4": "blocks.4", "res5": "blocks.6"}
REGNET_BLOCKS = {f"res{i + 1}": f"trunk_output.block{i}" for i in range(1, 5)}
TIMM_REGNET_BLOCKS = {f"res{i + 1}": f"s{i}" for i in range(1, 5)}

# Not its regnet_x_400mf, whose last stage is 400 wide; the design space gives 384.
X_800M = ("MODEL.DGNET.REGNET", "X_800M")
Y_400M = ("MODEL.DGNET.REGNET", "Y_400M")

# library, its model, our config, overrides, its modules whose outputs are ours
NETWORKS = [
    ("torchvision", "resnet18", "R_18", (), LAYERS),
    ("torchvision", "resnet50", "R_50", (), LAYERS),
    ("torchvision", "resnext50_32x4d", "X_50_32x4d", (), LAYERS),
    ("torchvision", "mobilenet_v2", "MobileNetV2", (), TORCHVISION_BLOCKS),
    ("torchvision", "regnet_x_800mf", "RegNetX_600M", X_800M, REGNET_BLOCKS),
    ("torchvision", "regnet_y_400mf", "RegNetX_600M", Y_400M, REGNET_BLOCKS),
    ("timm", "resnet18", "R_18", (), LAYERS),
    ("timm", "resnet50", "R_50", (), LAYERS),
    ("timm", "mobilenetv2_100", "MobileNetV2", (), TIMM_BLOCKS),
    ("timm", "regnetx_006", "RegNetX_600M", (), TIMM_REGNET_BLOCKS),
]


def static_network(library: str, name: str) -> nn.Module:
    if library == "timm":
        return randomised(timm.create_model(name, pretrained=False))
    return randomised(torchvision.models.get_model(name, weights=None))


@pytest.mark.parametrize(
    ("library", "name", "config_name", "opts", "modules"),
    NETWORKS,
    ids=[f"{library}-{name}" for library, name, *_ in NETWORKS],
)
def test_converted_weights_give_the_static_features(
    library: str, name: str, config_name: str, opts: tuple, modules: dict, tmp_path: Path
) -> None:
    static = static_network(library, name)
    cfg = config(config_name, *opts)
    conversion = convert(saved(static.state_dict(), tmp_path / "static.pth"), cfg)
    assert conversion.problem == ""
    assert conversion.match.kind.wiring == "static"
    detector = Detector(cfg)
    DGNetCheckpointer(detector).load(saved(conversion.checkpoint, tmp_path / "converted.pth"))
    for size in SIZES:
        image = torch.randn(2, 3, *size)
        expected = features_by_hooks(static, modules, image)
        actual = dgnet_features(detector, image)
        for stage in STAGES:
            assert relative_error(actual[stage], expected[stage]) < 1e-5


@pytest.mark.parametrize("name", ["R_50", "X_50_32x4d"])
def test_detectron2s_backbone_loads_directly(name: str, tmp_path: Path) -> None:
    static = detectron2_resnet(config(name, "MODEL.RESNETS.OUT_FEATURES", str(list(STAGES))))
    path = saved({"model": static.state_dict()}, tmp_path / "static.pth")
    for edge_weights in ("dynamic", "static", "none"):
        detector = Detector(config(name, "MODEL.DGNET.EDGE_WEIGHTS", edge_weights))
        DGNetCheckpointer(detector).load(path)
        for size in SIZES:
            image = torch.randn(1, 3, *size)
            with torch.no_grad():
                expected = static(image)
            actual = dgnet_features(detector, image)
            for stage in STAGES:
                assert relative_error(actual[stage], expected[stage]) < 1e-5


def test_a_trained_detector_goes_on_as_a_dynamic_one(tmp_path: Path) -> None:
    small = ("MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.FPN.OUT_CHANNELS", "32")
    cfg = config("R_50", *small)
    static_cfg = cfg.clone()
    static_cfg.defrost()
    static_cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    static = randomised(build_model(static_cfg))
    dynamic = build_model(cfg).eval()
    # What Detectron2's trainer saves, as far as loading is concerned.
    path = saved({"model": static.state_dict(), "iteration": 7}, tmp_path / "model_final.pth")
    assert DGNetCheckpointer(dynamic).load(path)["iteration"] == 7
    boxes = [Boxes(torch.tensor([[4.0, 6.0, 50.0, 40.0], [10.0, 3.0, 30.0, 60.0]]))]
    for size in SIZES:
        image = torch.rand(3, *size) * 255
        outputs = []
        for model in (static, dynamic):
            with torch.no_grad():
                features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
                maps = [features[f] for f in model.proposal_generator.in_features]
                logits, deltas = model.proposal_generator.rpn_head(maps)
                heads = model.roi_heads
                pooled = heads.box_pooler([features[f] for f in heads.box_in_features], boxes)
                scores, box_deltas = heads.box_predictor(heads.box_head(pooled))
                outputs.append([*logits, *deltas, scores, box_deltas])
        for expected, actual in zip(*outputs, strict=True):
            assert relative_error(actual, expected) < 1e-5
