"""RetinaNet, Mask, Cascade and Keypoint R-CNN on DG-Net backbones: they train, on users' own data
too."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from helpers.configs import DETECTORS
from helpers.detectors import SMALL, config, write_objects

from dgnet_cli.train_net import main
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dynamic_graphs, routed_stages

RPN = ["loss_rpn_cls", "loss_rpn_loc"]
LOSSES = {
    "retinanet": ["loss_cls", "loss_box_reg"],
    "mask_rcnn": [*RPN, "loss_cls", "loss_box_reg", "loss_mask"],
    "keypoint_rcnn": [*RPN, "loss_cls", "loss_box_reg", "loss_keypoint"],
    "cascade_mask_rcnn": [
        *RPN, "loss_mask", *(f"loss_cls_stage{i}" for i in range(3)),
        *(f"loss_box_reg_stage{i}" for i in range(3)),
    ],
}  # fmt: skip
PAPER = ["MODEL.DGNET.WIRING", "paper"]
OTHERS = [path for path in DETECTORS if not path.stem.startswith("faster_rcnn")]


def objects(*, num_keypoints: int) -> Instances:
    """Two objects with masks and keypoints in an image of 64 × 64 pixels."""
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 4, 40, 50], [20, 10, 60, 60]]))
    instances.gt_classes = torch.tensor([0, 0])
    triangles = [[4, 4, 40, 4, 40, 50], [20, 10, 60, 10, 60, 60]]
    instances.gt_masks = PolygonMasks([[np.array(t, dtype=float)] for t in triangles])
    instances.gt_keypoints = Keypoints(torch.rand(2, num_keypoints, 3) * 20 + 20)
    return instances


def check_training_step(path: Path, opts: list[str]) -> None:
    """One step gives the meta-architecture's losses, and whatever trains a gradient."""
    cfg = load_cfg(str(path), [*SMALL, *opts])
    model = build_model(cfg)
    image = {"image": torch.rand(3, 64, 64) * 255, "instances": objects(num_keypoints=17)}
    with EventStorage():
        losses = model([image])
    (names,) = (LOSSES[kind] for kind in LOSSES if path.stem.startswith(f"{kind}_"))
    assert sorted(losses) == sorted(names)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
    routed = "drnet" in cfg.MODEL.BACKBONE.NAME
    assert bool(dynamic_graphs(model)) == (cfg.MODEL.DGNET.EDGE_WEIGHTS == "dynamic" and not routed)
    assert bool(routed_stages(model)) == routed


NARROW_RESNET = [
    "MODEL.DGNET.FAMILY", "resnet", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "4",
]  # fmt: skip


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_every_config_trains(path: Path) -> None:
    check_training_step(path, NARROW_RESNET)


@pytest.mark.parametrize(
    "network",
    [
        [],
        ["MODEL.DGNET.FAMILY", "regnet", *PAPER],
        [*NARROW_RESNET, "MODEL.RESNETS.DEPTH", "18", *PAPER],
    ],
    ids=["mobilenetv2", "regnet", "resnet"],
)
def test_every_family_trains(network: list[str]) -> None:
    check_training_step(Path(config("retinanet")), network)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_objects(root / "objects.json", root)
    return root


@pytest.mark.parametrize(
    ("kind", "tasks", "opts"),
    [
        ("retinanet", ["bbox"], []),
        ("cascade", ["bbox", "segm"], []),
        ("keypoint", ["bbox", "keypoints"], ["TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.05, 0.05]"]),
    ],
    ids=["retinanet", "cascade", "keypoint"],
)
def test_own_data_is_trained_and_evaluated_on(
    dataset: Path, tmp_path: Path, kind: str, tasks: list[str], opts: list[str]
) -> None:
    arguments = [
        "--config-file", config(kind), "--json", str(tmp_path / "metrics.json"), *SMALL,
        "INPUT.MIN_SIZE_TRAIN", "(64,)",
        "SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2",
        "SOLVER.STEPS", "(1,)", "SOLVER.BASE_LR", "0.0001", "TEST.EVAL_PERIOD", "0",
        "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path), *opts,
    ]  # fmt: skip
    for split in ("TRAIN", "VAL"):
        arguments += [f"DATASETS.{split}_JSON", str(dataset / "objects.json")]
        arguments += [f"DATASETS.{split}_IMAGES", str(dataset)]
    main(arguments)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert sorted(metrics) == [*tasks, "wiring"]
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["class_names"] == ["bird"]


@pytest.mark.parametrize("kind", ["retinanet", "keypoint"])
def test_augmentation_that_detectron2_lacks_is_told(kind: str) -> None:
    with pytest.raises(UserError, match=r"TEST\.AUG\.ENABLED: Detectron2 augments tests of R-CNN"):
        main(["--config-file", config(kind), "TEST.AUG.ENABLED", "True"])
