"""Importing the package, its wheel, and what a detector built from it offers to Detectron2's
export."""

import os
import shutil
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.export import TracingAdapter
from helpers.configs import ROOT
from torch import nn

import dgnet_det
from dgnet_det import model_zoo
from dgnet_det.config import load_cfg
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dynamic_graphs, record_decisions


def test_without_detectron2_the_import_says_how_to_install_it() -> None:
    code = "import sys; sys.modules['detectron2'] = None; import dgnet_det"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: dgnet_det needs Detectron2")


def test_the_import_needs_neither_the_model_zoo_nor_compiled_code() -> None:
    code = (
        "import sys; sys.modules['detectron2._C'] = None; sys.modules['pkg_resources'] = None;"
        "import dgnet_det; assert 'detectron2.model_zoo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def install_wheel(folder: Path) -> Path:
    """``bin`` of a new environment that has the wheel and, after it, what the running one has."""
    source = folder / "source"
    for name in ("dgnet_cli", "dgnet_det", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(folder), str(source), *options], check=True)
    venv.create(folder / "venv", with_pip=True)
    install = [str(folder / "venv/bin/python"), "-m", "pip", "install", *options]
    subprocess.run([*install, *map(str, folder.glob("*.whl"))], check=True)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    paths = [path for path in sys.path if path.endswith("-packages")]
    (packages / "running.pth").write_text("\n".join(paths))
    return folder / "venv/bin"


def outside(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that runs in ``folder``, without a checkout on its path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_wheel_brings_the_command_and_configs(tmp_path: Path) -> None:
    wheels_bin = install_wheel(tmp_path)
    before, dgnet = sorted(tmp_path.iterdir()), wheels_bin / "dgnet"
    version = outside(tmp_path, dgnet, "--version").stdout
    assert version == f"dgnet {dgnet_det.__version__}\n"
    assert outside(tmp_path, dgnet, "train", "--help").stdout.startswith("usage: dgnet train [-h]")
    report = outside(tmp_path, dgnet, "env").stdout
    assert report.startswith(f"dgnet_det {dgnet_det.__version__} @{wheels_bin.parent}")
    assert "detectron2" in report
    config = "configs/COCO-Detection/faster_rcnn_DG_R_50_FPN_1x.yaml"  # which the wheel carries
    result = outside(tmp_path, dgnet, "train", "--config-file", config, "DATASETS.TRAIN", "()")
    assert result.returncode == 1
    assert result.stderr == "error: DATASETS.TRAIN: empty: there is nothing to train on\n"
    assert sorted(tmp_path.iterdir()) == before

    code = (
        "from dgnet_det import model_zoo\n"
        "print(*model_zoo.list(), sep='\\n')\n"
        "model_zoo.get('COCO-Detection/faster_rcnn_DG_MobileNetV2_residual_FPN_1x.yaml')\n"
        "model_zoo.get('COCO-Detection/faster_rcnn_DG_MobileNetV2_residual_FPN_1x.py')\n"
    )
    result = outside(tmp_path, wheels_bin / "python", "-c", code)
    assert result.returncode == 0, result.stderr
    studies = ("Mixed-Kinds/", "Study/", "Tree-Crowns/")
    ours = [name for name in model_zoo.list() if not name.startswith(studies)]
    assert result.stdout.split() == ours
    assert len(ours) >= 50


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_detector_follows_a_second_image() -> None:
    """The second image has another size, other content and closes other edges."""
    cfg = load_cfg(
        str(ROOT / "configs/COCO-Detection/faster_rcnn_DG_R_18_residual_FPN_1x.yaml"),
        ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.WEIGHTS", "",
         "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8",
         "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
         "MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.RPN.PRE_NMS_TOPK_TEST", "50"],
    )  # fmt: skip
    model = build_model(cfg).eval()
    for graph in dynamic_graphs(model).values():
        for parameter in [*graph.routers.parameters(), *graph.gammas.values()]:
            nn.init.normal_(parameter, std=1.0)
        nn.init.constant_(graph.thresholds, 0.5)
    first = [{"image": torch.randint(0, 256, (3, 96, 128)).float()}]
    second = [{"image": torch.randint(0, 40, (3, 128, 96)).float()}]
    infer = partial(type(model).inference, do_postprocess=False)
    adapter = TracingAdapter(model, first, inference_func=infer)
    with torch.no_grad(), record_decisions(model) as weights:
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        opened = [w.value.ne(0) for w in weights.values()]
        (expected,) = model.inference(second, do_postprocess=False)
        (got,) = adapter.outputs_schema(traced(second[0]["image"]))
    assert any((a != w.value.ne(0)).any() for a, w in zip(opened, weights.values(), strict=True))
    assert len(expected) > 0
    boxes, expected_boxes = got.pred_boxes.tensor, expected.pred_boxes.tensor
    torch.testing.assert_close(boxes, expected_boxes, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(got.scores, expected.scores, rtol=1e-3, atol=1e-4)
