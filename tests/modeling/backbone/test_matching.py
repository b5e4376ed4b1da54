"""A residual DG-Net loads a static network's tensors, whatever loads them, and then is that
network."""

import logging
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.modeling import build_model
from helpers.static_networks import (
    MOBILENET,
    NETWORKS,
    REGNET,
    RESNET18,
    RESNET50,
    Static,
    assert_equal_features,
    config,
    detectron2_resnet,
    saved,
)
from torch import Tensor, nn

from dgnet_det import DGNet, UserError
from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.modeling.backbone.matching import match_backbone

PREFIX = "backbone.bottom_up."
# A narrow ResNet-50 of Detectron2.
NARROW = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "4",
)  # fmt: skip


def image(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(1, 3, height, width)


@torch.no_grad()
def assert_is(dgnet: DGNet, static: Static) -> None:
    for x in (image(), image(96, 64)):
        assert_equal_features(dgnet.eval()(x), static.features(x))


@pytest.mark.parametrize(
    ("static", "edge_weights"),
    [*((static, "dynamic") for static in NETWORKS), (RESNET18, "static"), (RESNET50, "none")],
    ids=str,
)
def test_a_bare_backbone(static: Static, edge_weights: str) -> None:
    """Head, counters of norms and all: ``strict`` has nothing to complain of."""
    tensors = static.build().state_dict()
    names = list(tensors)
    dgnet = static.dgnet(edge_weights=edge_weights)
    dgnet.load_state_dict(tensors)
    assert list(tensors) == names  # the caller's stay as they are
    assert_is(dgnet, static)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_detectron2s_resnet(norm: str) -> None:
    cfg = config("R_50", *NARROW, "MODEL.RESNETS.NORM", norm)
    model = detectron2_resnet(cfg)
    dgnet = build_model(cfg).backbone.bottom_up.eval()
    dgnet.load_state_dict(model.state_dict())
    x = image()
    with torch.no_grad():
        assert_equal_features(dgnet(x), model(x))


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> list:
        return []


def default_trainer(cfg: CfgNode) -> nn.Module:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer.model


def detection_checkpointer(cfg: CfgNode) -> nn.Module:
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def load_state_dict(cfg: CfgNode) -> nn.Module:
    model = build_model(cfg)
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"])
    return model


def own_checkpointer(cfg: CfgNode) -> nn.Module:
    model = build_model(cfg)
    DGNetCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


LOADERS = {
    "DGNetCheckpointer": own_checkpointer,
    "DetectionCheckpointer": detection_checkpointer,
    "DefaultPredictor": lambda cfg: DefaultPredictor(cfg).model,
    "DefaultTrainer": default_trainer,
    "load_state_dict": load_state_dict,
}


DETECTORS = {"R_18": RESNET18, "R_50": RESNET50, "MobileNetV2": MOBILENET, "RegNetX_600M": REGNET}


@pytest.fixture(scope="module", params=DETECTORS)
def static_detector(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CfgNode, Static, dict[str, Tensor]]:
    """A config whose weights are a static detector's, the backbone, and the other tensors."""
    name, static = request.param, DETECTORS[request.param]
    folder = tmp_path_factory.mktemp(name)
    opts = ["MODEL.RESNETS.WIDTH_PER_GROUP", "8"] if name == "R_50" else []
    opts += ["MODEL.WEIGHTS", str(folder / "static.pth"), "OUTPUT_DIR", str(folder)]
    cfg = config(name, "MODEL.DGNET.REGNET", "Y_400M", *opts)
    own = build_model(cfg).state_dict()
    others = {k: torch.randn(x.shape) for k, x in own.items() if not k.startswith(PREFIX)}
    backbone = static.build().state_dict()
    backbone = {PREFIX + k: x for k, x in backbone.items() if not k.startswith("fc.")}
    saved({"model": others | backbone}, folder / "static.pth")
    return cfg, static, others


@pytest.mark.parametrize("loader", LOADERS)
def test_a_static_detector(
    loader: str, static_detector: tuple[CfgNode, Static, dict[str, Tensor]]
) -> None:
    """Everything that Detectron2 has for loading takes a static detector's checkpoint, and ours."""
    cfg, static, others = static_detector
    model = LOADERS[loader](cfg)
    assert_is(model.backbone.bottom_up, static)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in others.items())


def test_detectron2s_pickle_goes_into_the_backbone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as detectron2://ImageNetPretrained/torchvision/R-50.pkl: without a prefix."""
    cfg = config("R_50", *NARROW)
    static = detectron2_resnet(cfg)
    arrays = {name: tensor.numpy() for name, tensor in static.state_dict().items()}
    path = tmp_path / "R-50.pkl"
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    model = build_model(cfg).eval()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(path))
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("dgnet_det")]
    assert len(warnings) == 1
    assert warnings[0].startswith("backbone.bottom_up keeps its weights")
    assert "dgnet convert" in warnings[0]

    DetectionCheckpointer(model.backbone.bottom_up).load(str(path))
    x = image()
    with torch.no_grad():
        assert_equal_features(model.backbone.bottom_up(x), static(x))


def test_the_graphs_tensors_keep_their_values() -> None:
    dgnet = RESNET18.dgnet()
    routers = [name for name in dgnet.state_dict() if ".routers." in name]
    start = {name: torch.randn_like(dgnet.state_dict()[name]) for name in routers}
    dgnet.load_state_dict(start, strict=False)
    dgnet.load_state_dict(RESNET18.build().state_dict())
    assert start
    assert all(torch.equal(dgnet.state_dict()[name], x) for name, x in start.items())


def test_a_misfit_is_logged_in_one_line_and_left_to_torch(caplog: pytest.LogCaptureFixture) -> None:
    tensors = RESNET18.build().state_dict()
    paper = RESNET18.dgnet("paper")
    with pytest.raises(RuntimeError, match="Missing key"):
        paper.load_state_dict(tensors)
    with caplog.at_level(logging.WARNING):
        paper.load_state_dict(tensors, strict=False)
    assert "cannot start from a static network; set MODEL.DGNET.WIRING" in caplog.messages[-1]
    assert torch.equal(paper.state_dict()["stem.conv1.weight"], tensors["conv1.weight"])
    with pytest.raises(RuntimeError, match="Missing key"):
        MOBILENET.dgnet().load_state_dict(tensors)
    assert "change MODEL.DGNET.FAMILY" in caplog.messages[-1]


def test_a_stage_that_was_plain_starts_as_a_graph() -> None:
    source = RESNET18.dgnet(graph_stages=["res4", "res5"])
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.1)
    target = RESNET18.dgnet()
    target.load_state_dict(source.state_dict())
    x = image()
    with torch.no_grad():
        assert_equal_features(target(x), source(x))
    match = match_backbone(target.state_dict(), source)
    assert "res2, res3: dynamic in the checkpoint, plain in the config" in match.misfit()


def test_several_backbones_are_an_error() -> None:
    tensors = RESNET18.build().state_dict()
    twice = {f"{part}.{name}": x for part in ("student", "teacher") for name, x in tensors.items()}
    with pytest.raises(UserError, match=r"several backbones, at 'student\.', 'teacher\.'"):
        match_backbone(twice, RESNET18.dgnet())
