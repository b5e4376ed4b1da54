"""The classifiers of ``configs/ImageNet-Classification`` as timm's models.

Importing this module registers them: ``timm.create_model("dgnet_resnet50")``. Images are normalised
by timm's loader, not by the model. Names in a ``state_dict`` are those of
:class:`.modeling.classifier.DGNetClassifier`, so that whatever reads its checkpoints reads these.
"""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

if find_spec("timm") is None:
    raise ImportError("dgnet_det.timm_models needs timm: pip install timm", name="timm")

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dgnet_det.engine.optimizer import DECIDING
from dgnet_det.errors import UserError
from dgnet_det.model_zoo import get_config
from dgnet_det.modeling.classifier import build_classifier

# timm's name, with our prefix, and the config.
MODELS = {
    "dgnet_resnet18": "DG_R_18",
    "dgnet_resnet50": "DG_R_50",
    "dgnet_resnet101": "DG_R_101",
    "dgnet_resnext50_32x4d": "DG_X_50_32x4d",
    "dgnet_mobilenetv2_100": "DG_MobileNetV2",
    "dgnet_regnetx_006": "DG_RegNetX_600M",
    "dgnet_regnetx_016": "DG_RegNetX_1600M",
    "dgnet_regnety_006": "DG_RegNetY_600M",
    "dgnet_regnety_016": "DG_RegNetY_1600M",
    "drnet_cells": "DR_cells",
}
FEATURES = ("stem", "res2", "res3", "res4", "res5")


class TimmClassifier(nn.Module):
    """Backbone and head of a :class:`DGNetClassifier`, with the methods that timm expects."""

    def __init__(
        self,
        config: str,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        global_pool: str = "avg",
    ) -> None:
        """``config`` is a name in ``configs/ImageNet-Classification``; the other arguments are
        timm's. ``drop_rate`` is by default the config's."""
        super().__init__()
        cfg = get_config(f"ImageNet-Classification/{config}.yaml")
        cfg.MODEL.RESNETS.OUT_FEATURES = list(FEATURES)
        if drop_rate is not None:
            cfg.CLASSIFICATION.DROPOUT = drop_rate
        classifier = build_classifier(cfg, in_channels=in_chans)
        self.backbone, self.head = classifier.backbone, classifier.head
        self.in_chans, self.drop_rate = in_chans, cfg.CLASSIFICATION.DROPOUT
        shapes = self.backbone.output_shape()
        self.feature_info = [
            {
                "module": f"backbone.{x}",
                "num_chs": shapes[x].channels,
                "reduction": shapes[x].stride,
            }
            for x in FEATURES
        ]
        self.num_features, self.head_hidden_size = shapes["res5"].channels, self.head.in_features
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised RGB images, [B, 3, H, W] → logits, [B, K]."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images → ``res5``, [B, C, ⌈H / 32⌉, ⌈W / 32⌉]."""
        return self.backbone(x)["res5"]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``res5`` → logits, or what the last layer reads."""
        return self.head.pooled(x) if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        intermediates_only: bool = False,
        **_: Any,
    ) -> Any:
        """The outputs of :data:`FEATURES` at ``indices``, or the last ``indices`` of them, in a
        list; after that of the last stage unless ``intermediates_only``."""
        features = self.backbone(x)
        taken = [features[FEATURES[i]] for i in _positions(indices)]
        return taken if intermediates_only else (list(features.values())[-1], taken)

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1, **_: Any) -> list[int]:
        """Drop the head, and the stages that no output at ``indices`` needs. Returns these."""
        kept = _positions(indices)
        old, names = self.backbone, FEATURES[: max(kept) + 1]
        stages = [list(old.get_submodule(name).children()) for name in names[1:]]
        self.backbone = type(old)(old.stem, stages, out_features=names)  # type: ignore[arg-type]
        self.head = nn.Identity()  # type: ignore[assignment]
        return kept

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Start the last layer anew for ``num_classes``. With 0, the model returns the pooled
        features.

        Raises:
            UserError: another pooling than the average.
        """
        if global_pool not in (None, "avg"):
            raise UserError(f"global_pool {global_pool!r}: these networks have 'avg' only")
        self.num_classes = num_classes
        self.head.reset(num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """
        Raises:
            UserError: ``enable``.
        """
        if enable:
            raise UserError("gradient checkpointing is not supported: leave --grad-checkpointing")

    def no_weight_decay(self) -> set[str]:
        """The names of routers, thresholds and gammas, whose decay would pull α to 1/2."""
        return {name for name, _ in self.named_parameters() if DECIDING & {*name.split(".")}}


def _positions(indices: int | Sequence[int] | None) -> list[int]:
    every = range(len(FEATURES))
    if indices is None or isinstance(indices, int):
        return list(every[-(indices or len(every)) :])
    return [every[i] for i in indices]


def _register(name: str, config: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            partial(TimmClassifier, config),
            name,
            pretrained,
            feature_cfg={"feature_cls": "getter"},
            **kwargs,
        )

    entrypoint.__name__ = entrypoint.__qualname__ = name
    globals()[name] = register_model(entrypoint)


default_cfgs = generate_default_cfgs(
    {
        name: {
            "interpolation": "bilinear",
            "first_conv": "backbone.stem.conv" + "1" * ("regnet" not in name),
            "classifier": "head.linear",
        }
        for name in MODELS
    }
)
for _name, _config in MODELS.items():
    _register(_name, _config)
