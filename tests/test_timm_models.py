"""The classifiers as timm's models, and timm's checkpoints in detectors."""

import argparse
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers.configs import ROOT
from helpers.detectors import route_at_random
from helpers.static_networks import randomised
from PIL import Image
from timm.data import Mixup, create_dataset, create_loader, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from dgnet_det import model_zoo
from dgnet_det.checkpoint import DGNetCheckpointer, convert, write_checkpoint
from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.classifier import build_classifier
from dgnet_det.timm_models import MODELS

DETECTOR = str(ROOT / "configs/COCO-Detection/faster_rcnn_DG_MobileNetV2_FPN_1x.yaml")


def test_without_timm_the_import_says_how_to_install_it() -> None:
    code = "import sys; sys.modules['timm'] = None; import dgnet_det.timm_models"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line == "ImportError: dgnet_det.timm_models needs timm: pip install timm"


def test_every_classifier_of_the_configs_is_registered() -> None:
    assert set(timm.list_models(["dgnet_*", "drnet_*"])) == set(MODELS)
    folder = ROOT / "configs/ImageNet-Classification"
    assert set(MODELS.values()) == {path.stem for path in folder.glob("D[GR]_*.yaml")}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_our_classifier_on_the_picture_itself(name: str) -> None:
    model = timm.create_model(name, num_classes=7).eval()
    route_at_random(randomised(model))
    cfg = model_zoo.get_config(f"ImageNet-Classification/{MODELS[name]}.yaml")
    cfg.CLASSIFICATION.NUM_CLASSES = 7
    ours = build_classifier(cfg).eval()
    ours.load_state_dict(model.state_dict())
    data = resolve_data_config({}, model=model)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    picture = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        actual, expected = model((picture / 255 - mean) / std), ours(picture)
    assert expected.shape == (2, 7)
    atol = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", ["dgnet_resnet18", "drnet_cells"])
def test_features_only(name: str) -> None:
    whole = timm.create_model(name, in_chans=1).eval()
    features = timm.create_model(name, in_chans=1, features_only=True, out_indices=(0, -3)).eval()
    features.model.load_state_dict(whole.state_dict(), strict=False)
    x = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        outputs, (last, expected) = features(x), whole.forward_intermediates(x)
        torch.testing.assert_close(last, whole.forward_features(x))
    assert features.feature_info.reduction() == [2, 8]
    assert [y.shape[1:] for y in outputs] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(features.feature_info.channels(), [2, 8], strict=True)
    ]
    for i, output in zip([0, 2], outputs, strict=True):
        torch.testing.assert_close(output, expected[i])
    # What no output needs is not there: a parameter without a gradient stops data parallelism.
    features.train()
    sum(y.square().mean() for y in features(x)).backward()
    assert [n for n, p in features.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["dgnet_resnet18", "dgnet_mobilenetv2_100"])
def test_the_last_layer_is_replaced(name: str) -> None:
    model = timm.create_model(name, num_classes=5, drop_rate=0.3).eval()
    x = torch.randn(1, 3, 64, 64)
    model.reset_classifier(3)
    assert model(x).shape == (1, 3)
    assert model.get_classifier().out_features == model.num_classes == 3
    hidden = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), hidden)
    assert hidden.shape == (1, model.head_hidden_size)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3]
    with pytest.raises(UserError, match="global_pool 'max': these networks have 'avg' only"):
        model.reset_classifier(5, "max")


def test_without_weights_pretrained_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for dgnet_resnet18"):
        timm.create_model("dgnet_resnet18", pretrained=True)


def test_a_training_of_timms_pieces_starts_a_detector(tmp_path: Path) -> None:
    """What timm's training script does: its loader, Mixup, mixed precision, moving average and
    checkpoints."""
    for k in range(4):
        folder = tmp_path / f"data/train/{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((80, 80), 40 * k).convert("RGB").save(folder / f"{k}.png")
    model = timm.create_model("dgnet_mobilenetv2_100", num_classes=2, drop_rate=0.1)
    data = resolve_data_config({"input_size": (3, 64, 64)}, model=model)
    dataset = create_dataset("", str(tmp_path / "data"), split="train", is_training=True)
    loader = create_loader(
        dataset, data["input_size"], 4, True, use_prefetcher=False, auto_augment="rand-m9-mstd0.5",
        mean=data["mean"], std=data["std"], num_workers=0, device=torch.device("cpu"),
    )  # fmt: skip
    model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "sgd", lr=0.05, weight_decay=1e-4, momentum=0.9)
    for name, parameter in model.named_parameters():
        if ".routers." in name:
            (group,) = (
                g for g in optimizer.param_groups if any(p is parameter for p in g["params"])
            )
            assert group["weight_decay"] == 0
    average = ModelEmaV3(model, decay=0.5)
    mixup, loss_of = Mixup(0.2, cutmix_alpha=1.0, num_classes=2), SoftTargetCrossEntropy()
    for step in range(2):
        for images, labels in loader:
            images, targets = mixup(images, labels)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model(images.to(memory_format=torch.channels_last)), targets)
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
            average.update(model, step=step)
    args = argparse.Namespace(model="dgnet_mobilenetv2_100", lr=0.05)
    saver = CheckpointSaver(model, optimizer, args, average, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)

    averaged = copy.deepcopy(average.module).eval()
    cfg = load_cfg(DETECTOR, ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN"])
    conversion = convert(str(tmp_path / "last.pth.tar"), cfg)
    assert (conversion.problem, conversion.tensors["missing"]) == ("", [])
    assert cfg.INPUT.FORMAT == "RGB"
    assert pytest.approx([255 * x for x in data["mean"]]) == cfg.MODEL.PIXEL_MEAN
    assert pytest.approx([255 * x for x in data["std"]]) == cfg.MODEL.PIXEL_STD
    write_checkpoint(conversion.checkpoint, tmp_path / "detector.pth")
    detector = build_model(cfg).eval()
    DGNetCheckpointer(detector).load(str(tmp_path / "detector.pth"))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = averaged.forward_intermediates(images, (1, 2, 3, 4), intermediates_only=True)
        actual = detector.backbone.bottom_up(images)
    assert (model.backbone(images)["res5"] - expected[-1]).abs().max() > 1e-3  # another network
    for name, value in zip(("res2", "res3", "res4", "res5"), expected, strict=True):
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4)
