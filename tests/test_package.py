"""Importing the package, and what a detector built from it offers to Detectron2's export."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from detectron2.export import TracingAdapter
from helpers.configs import ROOT
from torch import nn

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
