"""Networks of few channels with untrained weights, and edges of theirs that are closed."""

import torch
from detectron2.layers import ShapeSpec
from helpers.configs import ROOT
from torch import nn

from dgnet_det.config import get_cfg, load_cfg
from dgnet_det.modeling.backbone import DGNet, build_dgnet_backbone
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dynamic_graphs

R_18 = str(ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_18_FPN_1x.yaml")
# Enough of a detector for the tests.
NARROW = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8",
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "10",
    "INPUT.MIN_SIZE_TEST", "64",
]  # fmt: skip


def narrow_r18(*opts: str) -> nn.Module:
    """Faster R-CNN on a DG-ResNet-18 of 8, 16, 32 and 64 channels with batch norm, nothing frozen,
    in evaluation mode."""
    cfg = load_cfg(R_18, [*NARROW, "MODEL.BACKBONE.FREEZE_AT", "0", *opts])
    return build_model(cfg).eval()


def narrow_backbone(*opts: object) -> DGNet:
    """The backbone of the same network alone, its norms frozen batch norm."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18,
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
            "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
            "MODEL.BACKBONE.FREEZE_AT", 0, *opts,
        ]
    )  # fmt: skip
    return build_dgnet_backbone(cfg, ShapeSpec(channels=3)).eval()


def close_edges(model: nn.Module, graph_name: str, *edges: tuple[int, int]) -> None:
    """Close edges i → j of a graph for every image."""
    graph = dynamic_graphs(model)[graph_name]
    for i, j in edges:
        with torch.no_grad():
            graph.routers[str(i)].linear.bias[j - i - graph.nearest] = -10.0
            graph.thresholds[i] = 0.01
