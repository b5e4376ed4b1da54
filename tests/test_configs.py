"""Every YAML of a DG-Net or DRNet-style detector builds and runs; keys and values are checked."""

from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from helpers.configs import DETECTORS, ROOT

from dgnet_det import model_zoo
from dgnet_det.config import get_cfg, is_classifier, load_cfg, with_own_weights
from dgnet_det.errors import UserError
from dgnet_det.modeling.backbone.base import StagedBackbone


@pytest.mark.parametrize(
    "path",
    [path for path in DETECTORS if "_DG_" in path.stem or "_DR_" in path.stem],
    ids=lambda path: path.stem,
)
def test_builds_and_runs(path: Path) -> None:
    """The plain twins differ from those of DG-Net in one key, as the next test says."""
    cfg = load_cfg(str(path), ["MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"])
    model = build_model(cfg).eval()
    backbone = model.backbone.bottom_up
    assert isinstance(backbone, StagedBackbone)
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    names = (
        ["res3", "res4", "res5"] if "retinanet" in path.stem else ["res2", "res3", "res4", "res5"]
    )
    assert strides == {name: 2 ** int(name[-1]) for name in names}
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 64, 96))
        for name, shape in model.backbone.output_shape().items():
            assert features[name].shape[1] == shape.channels
            assert features[name].shape[2] == -(-64 // shape.stride)
        (result,) = model([{"image": torch.randint(0, 256, (3, 60, 90))}])
    assert result["instances"].image_size == (60, 90)


def test_each_dynamic_config_has_a_plain_twin_that_differs_in_wiring_and_weights_alone() -> None:
    dynamic = [path for path in DETECTORS if "_residual_FPN_1x" in path.stem]
    assert len(dynamic) >= 11
    for path in dynamic:
        twin = path.with_name(path.name.replace("DG_", "").replace("_residual", ""))
        cfg, plain = load_cfg(str(path)).clone(), load_cfg(str(twin)).clone()
        for node in (cfg, plain):
            node.defrost()
            node.MODEL.DGNET.EDGE_WEIGHTS = ""
        assert cfg == plain, path.name


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/faster_rcnn_R_50_FPN_1x",
        "COCO-Detection/retinanet_R_50_FPN_1x",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
        "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    ],
)
def test_plain_configs_differ_from_detectron2s_in_backbone_and_pixels_alone(name: str) -> None:
    folder = Path(detectron2.__file__).parent / "model_zoo/configs"
    theirs = get_cfg()
    theirs.merge_from_file(str(folder / f"{name}.yaml"), allow_unsafe=True)
    ours = load_cfg(str(ROOT / f"configs/{name}.yaml"))
    different = {
        "MODEL.WEIGHTS", "MODEL.BACKBONE", "MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.DGNET",
        "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT", "SOLVER.REFERENCE_WORLD_SIZE",
        "TEST.EVAL_PERIOD", "MODEL.DEVICE",
    }  # fmt: skip
    unused = {
        "MODEL.ROI_MASK_HEAD": not ours.MODEL.MASK_ON,
        "MODEL.RPN": "retinanet" in name,
        "MODEL.ROI_HEADS": "retinanet" in name,
        "MODEL.ROI_BOX_HEAD": "retinanet" in name,
    }
    left_out = tuple(different | {key for key, is_unused in unused.items() if is_unused})
    ours_flat, theirs_flat = flat(ours), flat(theirs)
    for key in ours_flat:
        if not key.startswith(left_out):
            assert ours_flat[key] == theirs_flat[key], key


def flat(node: CfgNode, prefix: str = "") -> dict[str, object]:
    """Every key in full and its value."""
    keys: dict[str, object] = {}
    for key, value in node.items():
        keys |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
        )
    return keys


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.DGNET.WIRNG", "paper"], "MODEL.DGNET.WIRNG: .*the nearest is MODEL.DGNET.WIRING"),
        (["model.weights", "x"], "model.weights: there is no such key"),
        (["SOLVER.BASE_LR", "high"], "SOLVER.BASE_LR high: not a float, such as 0.02"),
        (["SOLVER.STEPS", "5"], r"SOLVER.STEPS 5: not a tuple, such as \(60000, 80000\)"),
        (["MODEL.WEIGHTS"], "MODEL.WEIGHTS: an override needs a value"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named(opts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_cfg(str(DETECTORS[0]), opts)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.DGNET.WIRING", "papr"], "MODEL.DGNET.WIRING 'papr': choose from paper, residual"),
        (["MODEL.DGNET.EDGE_WEIGHTS", "x"], "MODEL.DGNET.EDGE_WEIGHTS 'x'"),
        (["MODEL.DGNET.FAMILY", "vgg"], "MODEL.DGNET.FAMILY 'vgg'"),
        (["MODEL.RESNETS.DEPTH", "51"], "MODEL.RESNETS.DEPTH 51"),
        (["MODEL.RESNETS.OUT_FEATURES", "['res9']"], "MODEL.RESNETS.OUT_FEATURES"),
        (["MODEL.RESNETS.OUT_FEATURES", "[]"], "MODEL.RESNETS.OUT_FEATURES: empty"),
        (["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False,False,True,True]"], "DEFORM_ON_PER_STAGE"),
    ],
)
def test_values_that_no_backbone_has_are_named(opts: list[str], message: str) -> None:
    cfg = load_cfg(str(ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_50_FPN_1x.yaml"), opts)
    with pytest.raises(UserError, match=message):
        build_model(cfg)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: a config is a tree of KEY: VALUE lines"),
        (b"SOLVER:\nSEED: 1\n", "SOLVER: this section is empty: remove the line"),
        (b"- MODEL\n", "holds a list: a config is a tree"),
        (b"MODEL:\n  WEIGHTS: [x\n", r"x\.yaml, line 3: no valid YAML"),
        (b"MODEL:\n  WIGHTS: x\n", "MODEL.WIGHTS: .*the nearest is MODEL.WEIGHTS"),
        (b"SOLVER:\n  BASE_LR: x\n", "SOLVER.BASE_LR x: not a float"),
        (b"_BASE_: absent.yaml\n", "absent.yaml"),
        (b"\xff\xfe", "not UTF-8 text"),
        (None, "no such config file"),
    ],
)
def test_broken_files_are_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_cfg(str(path))


def test_the_model_zoo_finds_configs_by_name() -> None:
    name = "COCO-Detection/faster_rcnn_DG_R_50_residual_FPN_1x"
    path = model_zoo.get_config_file(f"{name}.yaml")
    assert Path(path) == ROOT / f"configs/{name}.yaml"
    cfg, lazy = (model_zoo.get_config(f"{name}.{suffix}") for suffix in ("yaml", "py"))
    assert cfg.MODEL.DGNET.WIRING == "residual"
    cfg.MODEL.WEIGHTS = ""  # not frozen
    assert lazy.model.backbone.bottom_up.wiring == "residual"
    with pytest.raises(UserError, match=r"R_51.*the nearest is COCO-Detection/.*_R_50_.*\.yaml"):
        model_zoo.get_config("COCO-Detection/faster_rcnn_DG_R_51_residual_FPN_1x.yaml")


def test_the_model_zoo_builds_models_by_name() -> None:
    names = model_zoo.list()
    detector, classifier = (
        "COCO-Detection/faster_rcnn_DG_R_18_FPN_1x",
        "ImageNet-Classification/R_18",
    )
    assert {f"{detector}.yaml", f"{classifier}.yaml"} <= set(names)
    assert not any("Base-" in name for name in names)
    assert model_zoo.get(f"{detector}.yaml", device="cpu").roi_heads.num_classes == 80
    assert model_zoo.get(f"{classifier}.yaml", device="cpu").head.linear.out_features == 1000
    with pytest.raises(UserError, match="there are no trained weights"):
        model_zoo.get(f"{detector}.yaml", trained=True)


def test_detectron2s_trainer_takes_the_model_zoos_keys_as_they_are() -> None:
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_DG_R_18_FPN_1x.yaml")
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, 3
    scaled = DefaultTrainer.auto_scale_workers(cfg, 1).SOLVER
    assert (scaled.IMS_PER_BATCH, scaled.MAX_ITER) == (2, 3)


@pytest.mark.parametrize("in_features", [None, "['res5']"])
def test_a_detector_without_fpn_is_no_classifier(in_features: str | None) -> None:
    opts = ["MODEL.RPN.IN_FEATURES", in_features] if in_features else []
    cfg = load_cfg(str(ROOT / "configs/ImageNet-Classification/R_50.yaml"), opts)
    assert is_classifier(cfg) == (in_features is None)


def test_a_trained_models_config_names_the_model_beside_it(tmp_path: Path) -> None:
    config = str(tmp_path / "config.yaml")
    assert with_own_weights(config, ["SEED", "1"]) == ["SEED", "1"]
    for name in ("model_0000009.pth", "model_final.pth"):  # interrupted, then finished
        (tmp_path / name).touch()
        (tmp_path / "last_checkpoint").write_text(name)
        weights = ["MODEL.WEIGHTS", str(tmp_path / name)]
        assert with_own_weights(config, ["SEED", "1"]) == ["SEED", "1", *weights]
    (tmp_path / "last_checkpoint").unlink()
    assert with_own_weights(config, []) == weights
    assert with_own_weights(config, ["MODEL.WEIGHTS", ""]) == ["MODEL.WEIGHTS", ""]
    assert with_own_weights(str(tmp_path / "other.yaml"), []) == []
