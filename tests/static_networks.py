"""Static networks of other libraries, and what the checkpoint tests do with them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import Tensor, nn

from configs import ROOT
from dgnet_det.config import load_cfg

CONFIGS = ROOT / "configs" / "COCO-Detection"
SIZES = ((64, 64), (96, 64))
STAGES = ("res2", "res3", "res4", "res5")
LAYERS = {f"res{i + 1}": f"layer{i}" for i in range(1, 5)}  # torchvision's and timm's ResNets


def config(name: str, *opts: str, wiring: str = "residual") -> CfgNode:
    """A detector's config, ``name`` as in its file name."""
    return load_cfg(str(CONFIGS / f"faster_rcnn_DG_{name}_{wiring}_FPN_1x.yaml"), opts)


class Detector(nn.Module):
    """A detector without heads: the names of its backbone's tensors are a detector's."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = build_backbone(cfg)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` for inference, its norms' statistics and parameters far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def detectron2_resnet(cfg: CfgNode) -> nn.Module:
    """Detectron2's own static backbone under the same ``MODEL.RESNETS``."""
    return randomised(build_resnet_backbone(cfg, ShapeSpec(channels=3)))


@torch.no_grad()
def features_by_hooks(
    model: nn.Module, modules: Mapping[str, str], image: Tensor
) -> dict[str, Tensor]:
    """Outputs of the named submodules: ``modules`` maps res2..res5 to their names in ``model``."""
    features: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, name=name: features.update({name: output.clone()})
        )
        for name, module in modules.items()
    ]
    model(image)
    for handle in handles:
        handle.remove()
    return features


@torch.no_grad()
def dgnet_features(detector: Detector, image: Tensor) -> dict[str, Tensor]:
    """The DG-Net's feature maps, before the FPN."""
    return detector.eval().backbone.bottom_up(image)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value."""
    assert actual.shape == expected.shape
    assert expected.abs().max() > 0
    return float((actual - expected).abs().max() / expected.abs().max())


def saved(content: object, path: Path) -> str:
    """The path, ``content`` saved there by torch."""
    torch.save(content, path)
    return str(path)
