"""Static networks of other libraries, and what the checkpoint tests do with them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from helpers.configs import ROOT
from torch import Tensor, nn

from dgnet_det.config import load_cfg
from dgnet_det.modeling.backbone import DGNet, make_dgnet

CONFIGS = ROOT / "configs" / "COCO-Detection"
STAGES = ("res2", "res3", "res4", "res5")
# The modules whose outputs are the feature maps of STAGES.
LAYERS = ("layer1", "layer2", "layer3", "layer4")
FEATURES = ("features.3", "features.6", "features.13", "features.17")
TIMM_BLOCKS = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
TRUNK = tuple(f"trunk_output.block{i}" for i in range(1, 5))
TIMM_STAGES = ("s1", "s2", "s3", "s4")
# ResNets keep their width between blocks, which torchvision and timm do not let narrow, but not
# inside.
R_18: dict[str, Any] = {"depth": 18}
R_50: dict[str, Any] = {"depth": 50, "width_per_group": 8}
X_50: dict[str, Any] = {"depth": 50, "num_groups": 4, "width_per_group": 2}


class Static(NamedTuple):
    """A static network of another library, and ours for its tensors."""

    library: str
    name: str
    arguments: Mapping[str, Any]
    modules: tuple[str, ...]  # whose outputs are the feature maps
    family: str
    network: Mapping[str, Any]  # arguments of the family's network

    def __str__(self) -> str:
        return f"{self.library}-{self.name}"

    def build(self) -> nn.Module:
        """The network for inference, with random norms. It is built once: leave it as it is."""
        return _built(self.library, self.name, tuple(self.arguments.items()))

    def dgnet(self, wiring: str = "residual", norm: str = "FrozenBN", **arguments: Any) -> DGNet:
        """Our bare backbone for its tensors."""
        return make_dgnet(
            self.family,
            wiring=wiring,
            norm=norm,
            out_features=STAGES,
            **{**self.network, **arguments},
        ).eval()

    @torch.no_grad()
    def features(self, image: Tensor) -> dict[str, Tensor]:
        """The feature maps of STAGES, of the static network."""
        model = self.build()
        features: dict[str, Tensor] = {}
        handles = [
            model.get_submodule(module).register_forward_hook(
                lambda _module, _inputs, output, name=name: features.update({name: output.clone()})
            )
            for name, module in zip(STAGES, self.modules, strict=True)
        ]
        model(image)
        for handle in handles:
            handle.remove()
        return features


@cache
def _built(library: str, name: str, arguments: tuple[tuple[str, Any], ...]) -> nn.Module:
    if library == "timm":
        return randomised(timm.create_model(name, pretrained=False, **dict(arguments)))
    return randomised(torchvision.models.get_model(name, weights=None, **dict(arguments)))


RESNET18 = Static("torchvision", "resnet18", {}, LAYERS, "resnet", R_18)
RESNET50 = Static("torchvision", "resnet50", {"width_per_group": 8}, LAYERS, "resnet", R_50)
MOBILENET = Static("torchvision", "mobilenet_v2", {}, FEATURES, "mobilenetv2", {})
REGNET = Static("torchvision", "regnet_y_400mf", {}, TRUNK, "regnet", {"name": "Y_400M"})
NETWORKS = (
    RESNET18,
    RESNET50,
    Static("torchvision", "resnet50", {"groups": 4, "width_per_group": 2}, LAYERS, "resnet", X_50),
    MOBILENET,
    REGNET,
    Static("torchvision", "regnet_x_400mf", {}, TRUNK, "regnet", {"name": "X_400M_TV"}),
    Static("torchvision", "regnet_y_800mf", {}, TRUNK, "regnet", {"name": "Y_800M_TV"}),
    Static("timm", "resnet18", {}, LAYERS, "resnet", R_18),
    Static("timm", "resnet50", {"base_width": 8}, LAYERS, "resnet", R_50),
    Static("timm", "mobilenetv2_100", {}, TIMM_BLOCKS, "mobilenetv2", {}),
    Static("timm", "regnetx_006", {}, TIMM_STAGES, "regnet", {"name": "X_600M"}),
)


def config(name: str, *opts: str, wiring: str = "residual") -> CfgNode:
    """A detector's config, ``name`` as in its file name, with few channels behind the backbone and
    every stage a graph."""
    small = ("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16")
    small += ("MODEL.DGNET.STAGES", str(list(STAGES)))
    path = CONFIGS / f"faster_rcnn_DG_{name}_{wiring}_FPN_1x.yaml"
    return load_cfg(str(path), [*small, "MODEL.DEVICE", "cpu", *opts])


class Detector(nn.Module):
    """A detector without heads: the names of its backbone's tensors are a detector's."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = build_backbone(cfg)


def randomised(model: nn.Module) -> nn.Module:
    """``model`` for inference, its norms' statistics and parameters far from the identity."""
    generator = torch.Generator().manual_seed(0)
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
def assert_equal_features(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5
) -> None:
    """All feature maps are equal to rounding: by their largest difference over their largest
    value."""
    assert actual.keys() == expected.keys()
    for name, feature in expected.items():
        assert actual[name].shape == feature.shape
        assert feature.abs().max() > 0
        assert (actual[name] - feature).abs().max() < tolerance * feature.abs().max()


def saved(content: object, path: Path) -> str:
    """The path, ``content`` saved there by torch."""
    torch.save(content, path)
    return str(path)
