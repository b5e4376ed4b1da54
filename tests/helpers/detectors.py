"""Small detectors of every meta-architecture with untrained weights, whose wiring follows the
image."""

import json
from pathlib import Path

import numpy as np
import torch
from helpers.configs import ROOT
from PIL import Image
from torch import nn

from dgnet_det.data import load_cfg_with_data
from dgnet_det.data.own import class_names
from dgnet_det.export.predictor import Predictor
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dynamic_graphs

# The config of each meta-architecture that the tests make small.
META_ARCHITECTURES = {
    "faster": "COCO-Detection/faster_rcnn_DG_MobileNetV2_residual_FPN_1x",
    "retinanet": "COCO-Detection/retinanet_DG_R_50_residual_FPN_1x",
    "mask": "COCO-InstanceSegmentation/mask_rcnn_DG_R_50_residual_FPN_1x",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_DG_R_50_residual_FPN_1x",
    "cascade": "Misc/cascade_mask_rcnn_DG_R_50_residual_FPN_1x",
}
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.DGNET.FAMILY", "mobilenetv2",
    "MODEL.DGNET.STAGES", "['res2', 'res3', 'res4', 'res5']",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16, 16)",
    "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "40",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "40", "TEST.DETECTIONS_PER_IMAGE", "20",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0",
    "INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160",
]  # fmt: skip


def config(kind: str) -> str:
    """The path of a meta-architecture's config."""
    return str(ROOT / "configs" / f"{META_ARCHITECTURES[kind]}.yaml")


def small_predictor(kind: str, *opts: str) -> Predictor:
    """A detector whose edges close on some images and not on others."""
    cfg = load_cfg_with_data(config(kind), [*SMALL, *opts])
    predictor = Predictor(cfg, build_model(cfg).eval(), class_names(cfg))
    route_at_random(predictor.model)
    for name, parameter in predictor.model.named_parameters():
        if name.endswith("cls_score.weight"):
            # Or the scores would be ties: RetinaNet's head starts with small features.
            nn.init.normal_(parameter, std=10.0 if kind == "retinanet" else 0.3)
    return predictor


def route_at_random(model: nn.Module) -> None:
    """Give routers, thresholds and γ of a model values under which wiring and outputs depend on the
    image."""
    for graph in dynamic_graphs(model).values():
        for parameter in graph.routers.parameters():
            nn.init.normal_(parameter, std=1.0)
        nn.init.uniform_(graph.thresholds, 0.3, 0.7)
        for gamma in getattr(graph, "gammas", {}).values():
            nn.init.normal_(gamma, std=0.3)


def save(predictor: Predictor, path: str) -> None:
    """Write a predictor's weights as a checkpoint."""
    torch.save({"model": predictor.model.state_dict()}, path)


def write_objects(json_file: Path, images: Path) -> None:
    """Write COCO JSON and its images: noise, two objects each with a polygon and three keypoints,
    one of them not labelled."""
    rng = np.random.default_rng(0)
    images.mkdir(parents=True, exist_ok=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    category = {"id": 1, "name": "bird", "keypoints": ["beak", "left_wing", "right_wing"]}
    coco: dict[str, list] = {"images": [], "annotations": [], "categories": [category]}
    for i in range(4):
        pixels = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
        coco["images"].append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 64})
        for x in (4, 40):
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1, "image_id": i, "category_id": 1,
                    "iscrowd": 0, "bbox": [x, 10, 30, 40], "area": 1200,
                    "segmentation": [[x, 10, x + 30, 10, x + 30, 50, x, 50]],
                    "keypoints": [x + 5, 15, 2, x + 20, 20, 2, 0, 0, 0], "num_keypoints": 2,
                }
            )  # fmt: skip
    json_file.write_text(json.dumps(coco))
