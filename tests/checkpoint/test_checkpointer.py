"""DGNetCheckpointer: sources of every kind, and the errors that a misfit is."""

import pickle
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from helpers.static_networks import (
    RESNET18,
    RESNET50,
    STAGES,
    Detector,
    assert_equal_features,
    config,
    detectron2_resnet,
    randomised,
    saved,
)
from torch import nn

from dgnet_det.checkpoint import DGNetCheckpointer, convert
from dgnet_det.errors import UserError

NARROW = ("MODEL.RESNETS.WIDTH_PER_GROUP", "8")  # as RESNET50


def load(detector: nn.Module, path: str) -> None:
    DGNetCheckpointer(detector).load(path)


def torchvision_as_detectron2_pickles_it(model: nn.Module) -> dict:
    """The content of a file such as detectron2://ImageNetPretrained/torchvision/R-50.pkl."""
    arrays = {}
    for name, tensor in model.state_dict().items():
        if "layer" not in name:
            name = "stem." + name
        for i in (1, 2, 3, 4):
            name = name.replace(f"layer{i}", f"res{i + 1}").replace(f"bn{i}", f"conv{i}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        arrays[name] = tensor.numpy()
    return {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}


def detectron2_as_caffe2_names_it(model: nn.Module) -> dict[str, np.ndarray]:
    """The content of a file such as detectron2://ImageNetPretrained/MSRA/R-50.pkl: norms folded
    into affine parameters, momenta beside the weights."""
    arrays = {"fc1000_w": np.zeros((1000, 2048)), "fc1000_b": np.zeros(1000)}
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    branches["shortcut"] = "branch1"
    for name, tensor in model.state_dict().items():
        if re.search("running_|num_batches", name):
            continue
        *module, leaf = name.split(".")
        is_norm = module[-1] == "norm"
        if is_norm:
            module.pop()
        if module[0] == "stem":
            blob = "res_conv1" if is_norm else "conv1"
        else:
            blob = f"{module[0]}_{module[1]}_{branches[module[2]]}"
        if is_norm:
            blob += {"weight": "_bn_s", "bias": "_bn_b"}[leaf]
        else:
            blob += "_w"
        arrays[blob] = tensor.numpy()
    arrays["conv1_w_momentum"] = np.zeros(1)
    return arrays


def test_detectron2s_pickle_of_torchvision_weights(tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(torchvision_as_detectron2_pickles_it(RESNET50.build())))
    detector = Detector(config("R_50", *NARROW)).eval()
    load(detector, str(path))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        actual = detector.backbone.bottom_up(image)
    assert_equal_features(actual, RESNET50.features(image))


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_caffe2s_pickle_of_msra_weights(norm: str, tmp_path: Path) -> None:
    """Norms are folded into affine parameters there, which is all that there is."""
    opts = (*NARROW, "MODEL.RESNETS.STRIDE_IN_1X1", "True")
    static = detectron2_resnet(config("R_50", *opts))
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(detectron2_as_caffe2_names_it(static), protocol=2))
    for module in static.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps)
    detector = randomised(Detector(config("R_50", *opts, "MODEL.RESNETS.NORM", norm)))
    load(detector, str(path))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_equal_features(detector.backbone.bottom_up(image), static(image))


def test_dropped_stages_are_no_misfit(tmp_path: Path) -> None:
    opts = ("MODEL.BACKBONE.NAME", "build_dgnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res4']")
    detector = Detector(config("R_18", *opts)).eval()
    load(detector, saved(RESNET18.build().state_dict(), tmp_path / "resnet18.pth"))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        actual = detector.backbone(image)
    assert_equal_features(actual, {"res4": RESNET18.features(image)["res4"]})


def c4() -> tuple[nn.Module, dict[str, torch.Tensor], Any]:
    """Detectron2's C4 detector on a DG-Net, the static network that it can start from, and its
    config."""
    opts = ("MODEL.BACKBONE.NAME", "build_dgnet_backbone", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads")
    opts += ("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16")
    of_heads = ("MODEL.ROI_HEADS.IN_FEATURES", "['res4']", "MODEL.RPN.IN_FEATURES", "['res4']")
    of_heads += ("MODEL.ANCHOR_GENERATOR.SIZES", "[[64]]")
    cfg = config("R_50", *opts, *NARROW, *of_heads, "MODEL.RESNETS.OUT_FEATURES", "['res4']")
    static = config("R_50", *opts, *NARROW, "MODEL.RESNETS.OUT_FEATURES", str(list(STAGES)))
    return build_model(cfg), detectron2_resnet(static).state_dict(), cfg


@pytest.mark.parametrize("converted", [False, True])
def test_res5_goes_to_the_heads_of_a_c4_detector(converted: bool, tmp_path: Path) -> None:
    detector, static, cfg = c4()
    path = saved(static, tmp_path / "static.pth")
    if converted:
        path = saved(convert(path, cfg).checkpoint, tmp_path / "converted.pth")
    load(detector, path)
    found = {k.replace("res5", "roi_heads.res5", 1): x for k, x in static.items() if "res5" in k}
    state = detector.state_dict()
    assert len(found) == 50
    assert all(torch.equal(state[name], tensor) for name, tensor in found.items())


def test_a_wrapper_around_the_whole_detector_is_taken_off(tmp_path: Path) -> None:
    """Such as a training library's module, whose other tensors stay out."""
    source, target = Detector(config("R_18")), Detector(config("R_18"))
    state = {f"model.{name}": x for name, x in source.state_dict().items()}
    path = saved({"state_dict": state | {"loss.weight": torch.ones(3)}}, tmp_path / "x.ckpt")
    load(target, path)
    assert all(torch.equal(target.state_dict()[k], x) for k, x in source.state_dict().items())


def detector_tensors(left_out: str = "none") -> dict[str, torch.Tensor]:
    state = Detector(config("R_18")).state_dict()
    return {name: x for name, x in state.items() if left_out not in name}


def resnet18_tensors(left_out: str = "none") -> dict[str, torch.Tensor]:
    return {name: x for name, x in RESNET18.build().state_dict().items() if left_out not in name}


WIRING, EDGES = "MODEL.DGNET.WIRING", "MODEL.DGNET.EDGE_WEIGHTS"


@pytest.mark.parametrize(
    ("tensors", "config_name", "opts", "message"),
    [
        (resnet18_tensors, "R_50", (), "another depth.*MODEL.RESNETS.DEPTH"),
        (resnet18_tensors, "R_18", ("MODEL.RESNETS.DEPTH", "34"), "another depth.*RESNETS.DEPTH"),
        (resnet18_tensors, "R_18", ("MODEL.RESNETS.NORM", "GN"), "another depth, width or norm"),
        (resnet18_tensors, "MobileNetV2", (), "it is a resnet, the config builds a mobilenetv2"),
        (resnet18_tensors, "RegNetX_600M", (), "it is a resnet, the config builds a regnet"),
        (resnet18_tensors, "R_18", (WIRING, "paper"), "WIRING to residual"),
        (lambda: torchvision.models.resnet34(weights=None).state_dict(), "R_18", (),
         r"res2.0.nodes.3.conv1.weight.* and [0-9]+ more"),
        (lambda: resnet18_tensors("layer3.1.conv2.weight"), "R_18", (), "1 of 128 tensors missing"),
        (lambda: resnet18_tensors("layer3.1.bn2.running_mean"), "R_18", (), "1 of 128 tensors"),
        (detector_tensors, "R_18", (EDGES, "none"), "builds a static network"),
        (detector_tensors, "R_18", (EDGES, "static"), "residual wiring and dynamic edge weights"),
        (detector_tensors, "R_18", (WIRING, "paper"), "builds a DG-Net of paper wiring"),
        (lambda: detector_tensors(".thresholds"), "R_18", (), r"4 of 128 .*missing.*res2.0.thresh"),
        (lambda: timm.create_model("resnet18d").state_dict(), "R_18", (), "ResNet-C, -D"),
        (lambda: timm.create_model("seresnet50").state_dict(), "R_18", (), "squeeze"),
        (lambda: timm.create_model("efficientnet_b0").state_dict(), "R_18", (), "squeeze"),
    ],
)  # fmt: skip
def test_a_misfit_is_an_error(
    tensors: Callable[[], dict[str, torch.Tensor]], config_name: str, opts: tuple, message: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = saved(tensors(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as error:
        load(Detector(config(config_name, *opts)), path)
    assert str(error.value).startswith(f"MODEL.WEIGHTS {path}")
    assert "\n" not in str(error.value)


def test_missing_files_and_urls_name_the_key(tmp_path: Path) -> None:
    detector = Detector(config("R_18"))
    # Port 9 of the own host: nothing answers, no network is needed.
    for path in (str(tmp_path / "none.pth"), "http://127.0.0.1:9/none.pth", "catalog://none"):
        with pytest.raises(UserError, match=r"^MODEL\.WEIGHTS") as error:
            load(detector, path)
        assert path in str(error.value)
        assert "\n" not in str(error.value)


def test_no_weights_is_a_random_start() -> None:
    detector = Detector(config("R_18"))
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    assert DGNetCheckpointer(detector).load("") == {}
    assert all(torch.equal(before[name], x) for name, x in detector.state_dict().items())


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            DGNetCheckpointer(nn.Linear(100, 100), str(tmp_path)).save("model_final")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_last_checkpoint_is_not_blamed_on_the_key(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    checkpointer = DGNetCheckpointer(Detector(config("R_18")), str(tmp_path))
    with pytest.raises(UserError) as error:
        checkpointer.resume_or_load("", resume=True)
    assert str(error.value).startswith(str(tmp_path / "model_0000001.pth"))
