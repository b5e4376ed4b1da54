"""LazyConfigs build what the YAMLs of the same names build, and Detectron2's tool trains them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import detectron2
import pytest
import torch
import torchvision
from detectors import route_at_random, write_objects
from detectron2.config import LazyConfig, instantiate
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.solver import build_lr_scheduler

from configs import ROOT
from dgnet_det.config import load_cfg
from dgnet_det.modeling.build import build_model

LAZY = sorted(path for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "common")
# Of Detectron2: beside the package, in a source tree as in the wheel.
TOOL = Path(detectron2.__file__).parent.parent / "tools/lazyconfig_train_net.py"


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.stem)
def test_the_model_is_the_yamls(path: Path) -> None:
    cfg = load_cfg(str(path.with_suffix(".yaml")), ["MODEL.DEVICE", "cpu"])
    expected = build_model(cfg)
    model = instantiate(LazyConfig.load(str(path)).model)
    route_at_random(expected)
    assert list(model.state_dict()) == list(expected.state_dict())
    model.load_state_dict(expected.state_dict())
    trained = {name: p.requires_grad for name, p in expected.named_parameters()}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    batch = [{"image": torch.rand(3, 64, 96) * 255}, {"image": torch.rand(3, 96, 64) * 255}]
    for each in (expected, model):
        each.eval()
        predictor = each.roi_heads.box_predictor
        predictor.test_score_thresh, predictor.test_topk_per_image = 0.0, 10
        each.proposal_generator.post_nms_topk[False] = 20
    with torch.no_grad():
        for theirs, ours in zip(expected(batch), model(batch), strict=True):
            theirs, ours = theirs["instances"].get_fields(), ours["instances"].get_fields()
            assert torch.equal(ours["pred_boxes"].tensor, theirs["pred_boxes"].tensor)
            assert len(ours["scores"]) == 10
            for name in theirs.keys() - {"pred_boxes"}:
                assert torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.stem)
def test_data_and_schedule_are_the_yamls(path: Path) -> None:
    cfg, lazy = load_cfg(str(path.with_suffix(".yaml"))), LazyConfig.load(str(path))
    train, test = lazy.dataloader.train, lazy.dataloader.test
    resize, _ = train.mapper.augmentations
    assert tuple(resize.short_edge_length) == cfg.INPUT.MIN_SIZE_TRAIN
    assert resize.max_size == cfg.INPUT.MAX_SIZE_TRAIN
    assert test.mapper.augmentations[0].short_edge_length == cfg.INPUT.MIN_SIZE_TEST
    assert test.mapper.image_format == lazy.model.input_format == cfg.INPUT.FORMAT
    assert train.mapper.use_instance_mask == cfg.MODEL.MASK_ON
    assert (train.dataset.names,) == cfg.DATASETS.TRAIN
    assert (test.dataset.names,) == cfg.DATASETS.TEST
    assert train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER

    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameters, lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    multiplier = instantiate(lazy.lr_multiplier)
    for iteration in (0, 1, 500, 999, 1000, 59999, 60000, 79999, 80000, 89999):
        scheduler.last_epoch = iteration
        (expected,) = scheduler.get_lr()
        got = lazy.optimizer.lr * multiplier(iteration / lazy.train.max_iter)
        assert got == pytest.approx(expected, rel=1e-6), iteration


def test_detectron2s_tool_trains_from_a_converted_static_network(tmp_path: Path) -> None:
    if not TOOL.is_file():
        pytest.skip(f"this Detectron2 comes without {TOOL}")
    config = "configs/COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x"
    for split in ("train", "val"):
        json_file = tmp_path / f"coco/annotations/instances_{split}2017.json"
        write_objects(json_file, tmp_path / f"coco/{split}2017")
        coco = json.loads(json_file.read_text())
        coco["categories"] = [kind for kind in COCO_CATEGORIES if kind["isthing"]]
        json_file.write_text(json.dumps(coco))
    static = torchvision.models.resnet50()
    torch.save(static.state_dict(), tmp_path / "resnet50.pth")
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    weights = tmp_path / "static-R-50.pth"
    for command in (
        ["tools/convert_checkpoint.py", str(tmp_path / "resnet50.pth"), str(weights),
         "--config-file", f"{config}.yaml"],
        [str(TOOL), "--config-file", f"{config}.py", "train.device=cpu", "train.max_iter=1",
         f"train.init_checkpoint={weights}", f"train.output_dir={tmp_path}/output",
         "dataloader.train.num_workers=0", "dataloader.test.num_workers=0",
         "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
         "dataloader.test.mapper.augmentations.0.short_edge_length=64",
         "dataloader.train.total_batch_size=1",
         "model.backbone.out_channels=32", "model.roi_heads.box_head.fc_dims=[32,32]"],
    ):  # fmt: skip
        result = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-2000:]
    trained = torch.load(tmp_path / "output/model_final.pth", weights_only=True)["model"]
    # Frozen, so as it was in the static network.
    conv1 = trained["backbone.bottom_up.res2.0.nodes.1.conv1.weight"]
    assert torch.equal(conv1, static.layer1[0].conv1.weight)
    assert any(tensor.abs().max() > 0 for name, tensor in trained.items() if ".gammas." in name)
