"""The classifiers of Table 1, and the backbone that they share with the detector."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from helpers.configs import ROOT
from helpers.detectors import route_at_random
from helpers.static_networks import randomised
from helpers.table_1 import TABLE_1
from torch import nn
from torch._subclasses import FakeTensorMode
from torchvision.models import mobilenet_v2, resnet18

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.classifier import build_classifier

CONFIGS = ROOT / "configs"
NARROW = (
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "8"),
)


def config(name: str, *overrides: str) -> CfgNode:
    return load_cfg(str(CONFIGS / "ImageNet-Classification" / f"{name}.yaml"), overrides)


def millions_of_parameters(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def millions_of_conv_macs(model: nn.Module, size: int) -> float:
    """Counted where they happen: output positions × weights of each convolution's call."""
    total = 0

    def count(module: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output[0, 0].numel() * module.weight.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model(torch.rand(1, 3, size, size))
    return total / 1e6


@pytest.mark.parametrize("name", list(TABLE_1))
def test_table_1(name: str) -> None:
    parameters, macs = TABLE_1[name]
    with FakeTensorMode(), torch.no_grad():  # shapes alone
        model = build_classifier(config(name)).eval()
        assert millions_of_parameters(model) == pytest.approx(parameters, abs=0.0005001)
        assert millions_of_conv_macs(model, 224) == pytest.approx(macs, abs=0.005001)


@pytest.mark.parametrize(("name", "theirs"), [("R_18", resnet18), ("MobileNetV2", mobilenet_v2)])
def test_plain_twins_have_torchvisions_parameters(
    name: str, theirs: Callable[[], nn.Module]
) -> None:
    with FakeTensorMode():
        ours, theirs = build_classifier(config(name)), theirs()
    assert millions_of_parameters(ours) == millions_of_parameters(theirs)


def test_recipes_are_the_papers() -> None:
    for name in TABLE_1:
        cfg = config(name)
        family = cfg.MODEL.DGNET.FAMILY
        recipe = (
            cfg.CLASSIFICATION.EPOCHS,
            cfg.SOLVER.BASE_LR,
            cfg.SOLVER.WEIGHT_DECAY,
            cfg.CLASSIFICATION.DROPOUT,
        )
        assert (
            recipe
            == {
                "resnet": (100, 0.4, 1e-4, 0.0),
                "mobilenetv2": (200, 0.4, 4e-5, 0.2),
                "regnet": (100, 0.8, 5e-5, 0.0),
            }[family]
        )
        assert cfg.SOLVER.WEIGHT_DECAY_NORM == cfg.SOLVER.WEIGHT_DECAY
        assert cfg.SOLVER.IMS_PER_BATCH == 1024
        assert cfg.SOLVER.MOMENTUM == 0.9
        assert cfg.CLASSIFICATION.WARMUP_EPOCHS == 5
        assert cfg.CLASSIFICATION.LABEL_SMOOTHING == 0.1


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_a_detector_has_the_classifiers_features(wiring: str, tmp_path: Path) -> None:
    classifier = build_classifier(config("DG_R_18", *NARROW, "MODEL.DGNET.WIRING", wiring)).eval()
    route_at_random(classifier)
    randomised(classifier)
    path = tmp_path / "classifier.pth"
    torch.save({"model": classifier.state_dict()}, path)

    leaf = {"paper": "DG_R_18", "residual": "DG_R_18_residual"}[wiring]
    yaml = str(CONFIGS / f"COCO-Detection/faster_rcnn_{leaf}_FPN_1x.yaml")
    all_stages = ("MODEL.DGNET.STAGES", "['res2', 'res3', 'res4', 'res5']")
    detector = build_model(load_cfg(yaml, [*NARROW, *all_stages])).eval()
    DGNetCheckpointer(detector).load(str(path))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = classifier.backbone(images)["res5"]
        actual = detector.backbone.bottom_up(images)["res5"]
    atol = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol)
    torch.testing.assert_close(classifier.pixel_mean, detector.pixel_mean)
    torch.testing.assert_close(classifier.pixel_std, detector.pixel_std)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.RESNETS.OUT_FEATURES", "['res4']"), "MODEL.RESNETS.OUT_FEATURES"),
        (("INPUT.FORMAT", "BGR"), "INPUT.FORMAT BGR"),
    ],
)
def test_unsupported_values_are_user_errors(overrides: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_classifier(config("DG_R_18", *overrides))
