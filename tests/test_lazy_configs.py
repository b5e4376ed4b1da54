"""LazyConfigs build what the YAMLs of the same names build, and Detectron2's tool trains them."""

import runpy
from pathlib import Path

import detectron2
import pytest
import torch
import torchvision
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser
from detectron2.solver import build_lr_scheduler
from helpers.configs import ROOT
from helpers.detectors import route_at_random, write_objects

from dgnet_cli import convert_checkpoint
from dgnet_det.config import load_cfg
from dgnet_det.engine.optimizer import build_optimizer
from dgnet_det.modeling.build import build_model

LAZY = sorted(path for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "common")
# Of Detectron2: beside the package, in a source tree as in the wheel.
TOOL = Path(detectron2.__file__).parent.parent / "tools/lazyconfig_train_net.py"


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.stem)
def test_the_model_data_and_schedule_are_the_yamls(path: Path) -> None:
    cfg, lazy = load_cfg(str(path.with_suffix(".yaml"))), LazyConfig.load(str(path))
    expected, model = build_model(cfg), instantiate(lazy.model).to(cfg.MODEL.DEVICE)
    route_at_random(expected)
    assert list(model.state_dict()) == list(expected.state_dict())
    model.load_state_dict(expected.state_dict())
    trained = {name: p.requires_grad for name, p in expected.named_parameters()}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    for each in (expected, model):
        each.eval()
        predictor = each.roi_heads.box_predictor
        predictor.test_score_thresh, predictor.test_topk_per_image = 0.0, 10
        each.proposal_generator.post_nms_topk[False] = 20
    batch = [{"image": torch.rand(3, 64, 96) * 255}]
    with torch.no_grad():
        (theirs,), (ours,) = expected(batch), model(batch)
    theirs, ours = theirs["instances"].get_fields(), ours["instances"].get_fields()
    assert len(ours["scores"]) == 10
    torch.testing.assert_close(ours.pop("pred_boxes").tensor, theirs.pop("pred_boxes").tensor)
    torch.testing.assert_close(ours, theirs)

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

    optimizer = build_optimizer(cfg, expected)
    lazy.optimizer.params.model = model
    by_settings = [
        sorted((g["lr"], g["weight_decay"], g["momentum"], len(g["params"])) for g in groups)
        for groups in (optimizer.param_groups, instantiate(lazy.optimizer).param_groups)
    ]
    assert by_settings[0] == by_settings[1]
    scheduler = build_lr_scheduler(cfg, optimizer)
    multiplier = instantiate(lazy.lr_multiplier)
    for iteration in (0, 1, 500, 999, 1000, 59999, 60000, 79999, 80000, 89999):
        scheduler.last_epoch = iteration
        got = lazy.optimizer.lr * multiplier(iteration / lazy.train.max_iter)
        assert got == pytest.approx(scheduler.get_lr()[0], rel=1e-6), iteration


@pytest.mark.skipif(not TOOL.is_file(), reason="this Detectron2 comes without its tools")
def test_detectron2s_tool_trains_from_a_converted_static_network(tmp_path: Path) -> None:
    config = str(ROOT / "configs/COCO-Detection/faster_rcnn_DG_MobileNetV2_residual_FPN_1x")
    names = [f"lazy_{split}" for split in ("train", "val")]
    for name in names:
        write_objects(tmp_path / f"{name}.json", tmp_path / name)
        register_coco_instances(name, {}, str(tmp_path / f"{name}.json"), str(tmp_path / name))
    static = torchvision.models.mobilenet_v2()
    torch.save(static.state_dict(), tmp_path / "static.pth")
    converted, output = str(tmp_path / "converted.pth"), tmp_path / "output"
    convert_checkpoint.main(
        [str(tmp_path / "static.pth"), converted, "--config-file", f"{config}.yaml"]
    )
    arguments = [
        "--config-file", f"{config}.py", "train.device=cpu", "train.max_iter=1",
        f"train.init_checkpoint={converted}", f"train.output_dir={output}",
        f"dataloader.train.dataset.names={names[0]}", f"dataloader.test.dataset.names={names[1]}",
        "dataloader.train.num_workers=0", "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        "dataloader.train.total_batch_size=1", "model.roi_heads.num_classes=1",
    ]  # fmt: skip
    try:
        runpy.run_path(str(TOOL))["main"](default_argument_parser().parse_args(arguments))
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    trained = torch.load(output / "model_final.pth", weights_only=True)["model"]
    # Frozen, so as it was in the static network.
    (stem,) = (x for name, x in trained.items() if name.endswith("bottom_up.stem.conv1.weight"))
    assert torch.equal(stem, static.features[0][0].weight)
    assert any(tensor.abs().max() > 0 for name, tensor in trained.items() if ".gammas." in name)
