"""From a static torchvision checkpoint, by the converter, to the residual wiring's classifier."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from torch import nn

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.config import load_cfg
from dgnet_det.engine.classification import build_classifier, train

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/ImageNet-Classification"
convert = runpy.run_path(str(ROOT / "tools/convert_checkpoint.py"))["main"]


def static_network(name: str, path: Path) -> nn.Module:
    """A torchvision network with random weights and statistics, saved to ``path``."""
    model = getattr(torchvision.models, name)(num_classes=3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(model.state_dict(), path)
    return model


@pytest.mark.parametrize(
    ("name", "config"),
    [("resnet18", "DG_R_18"), ("mobilenet_v2", "DG_MobileNetV2")],
)
def test_the_classifier_starts_with_the_static_networks_logits(
    name: str, config: str, tmp_path: Path
) -> None:
    static = static_network(name, tmp_path / "static.pth")
    config_file = str(CONFIGS / f"{config}.yaml")
    overrides = ["MODEL.DGNET.WIRING", "residual", "CLASSIFICATION.NUM_CLASSES", "3"]
    converted = str(tmp_path / "converted.pth")
    convert([str(tmp_path / "static.pth"), converted, "--config-file", config_file, *overrides])
    classifier = build_classifier(load_cfg(config_file, overrides)).eval()
    DGNetCheckpointer(classifier).load(converted)
    images = torch.randint(0, 256, (2, 3, 96, 64)).float()
    with torch.no_grad():
        normalised = (images - classifier.pixel_mean) / classifier.pixel_std
        expected, logits = static(normalised), classifier(images)
    assert (logits - expected).norm() < 1e-5 * expected.norm()


def test_it_is_fine_tuned_from_there(make_cfg: Callable[..., CfgNode], tmp_path: Path) -> None:
    static_network("resnet18", tmp_path / "static.pth")
    overrides = [
        *("MODEL.DGNET.WIRING", "residual", "CLASSIFICATION.EPOCHS", "1"),
        *("CLASSIFICATION.WARMUP_EPOCHS", "0", "SOLVER.BASE_LR", "0.001"),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", "64", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    ]
    config_file, converted = str(CONFIGS / "DG_R_18.yaml"), str(tmp_path / "converted.pth")
    convert([str(tmp_path / "static.pth"), converted, "--config-file", config_file, *overrides[:2]])
    cfg = make_cfg(*overrides, "MODEL.WEIGHTS", converted)
    train(cfg, torch.device("cpu"))
    start = torch.load(converted, weights_only=True)["model"]
    final = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)["model"]
    gammas = [tensor for name, tensor in final.items() if ".gammas." in name]
    assert gammas
    assert all(gamma.abs().gt(0).all() for gamma in gammas)
    for name in ("backbone.stem.conv1.weight", "head.linear.weight"):
        change = (final[name] - start[name]).norm() / start[name].norm()
        assert 0 < change < 0.1
