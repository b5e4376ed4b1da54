"""Whatever trains is also evaluated, shown and exported, or is refused before training: over image
formats, meta-architectures and devices."""

from pathlib import Path

import pytest
import torch
from detectron2.data.datasets import load_coco_json
from detectron2.utils.events import EventStorage
from helpers.detectors import config, small_predictor, write_objects

from dgnet_det.config import load_cfg
from dgnet_det.data import CheckedDatasetMapper, read_image
from dgnet_det.errors import UserError
from dgnet_det.evaluation.coco import build_image_loader
from dgnet_det.export.exported import export_detector, load_detector
from dgnet_det.export.predictor import compare_detections, same_detections

ONE = ["MODEL.PIXEL_MEAN", "[103.0]", "MODEL.PIXEL_STD", "[57.0]"]


@pytest.mark.parametrize(
    ("kind", "opts"),
    [
        ("faster", ["INPUT.FORMAT", "L", "MODEL.DEVICE", "cuda"]),
        ("retinanet", ["INPUT.FORMAT", "L", *ONE]),
    ],
)
def test_training_evaluation_demo_and_export_see_one_image(
    kind: str, opts: list[str], tmp_path: Path
) -> None:
    json_file, folder = tmp_path / "x.json", tmp_path / "images"
    write_objects(json_file, folder)
    images = load_coco_json(str(json_file), str(folder))
    predictor = small_predictor(kind, *opts, "DATALOADER.NUM_WORKERS", "0")
    cfg, model = predictor.cfg, predictor.model

    mapper = CheckedDatasetMapper(cfg, is_train=True)
    with EventStorage():
        losses = model.train()([mapper(image) for image in images[:2]])
    model.eval()
    assert all(torch.isfinite(loss) for loss in losses.values())

    file = images[0]["file_name"]
    (evaluated,) = next(iter(build_image_loader(cfg, images)))
    assert torch.equal(evaluated["image"], predictor.prepare(read_image(file, "BGR")))
    assert torch.equal(evaluated["image"], predictor.prepare(read_image(file, "RGB"), "RGB"))
    with torch.no_grad():
        (result,) = model([evaluated])
    shown = predictor(read_image(file, "BGR"))
    assert len(shown) > 0
    torch.testing.assert_close(shown.pred_boxes.tensor, result["instances"].pred_boxes.tensor.cpu())

    export_detector(predictor, evaluated["image"], tmp_path / "x.ts")
    exported = load_detector(tmp_path / "x.ts")
    pixels = [read_image(image["file_name"], "BGR") for image in images]
    assert same_detections([compare_detections(predictor, exported, x) for x in pixels])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.DEVICE", "mps"], "MODEL.DEVICE 'mps': choose cpu, cuda"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE 'gpu'"),
        (["INPUT.FORMAT", "YUV-BT.601"], "INPUT.FORMAT 'YUV-BT.601': choose from BGR, RGB, L"),
        (["INPUT.FORMAT", "rgb"], "INPUT.FORMAT 'rgb'"),
        (["MODEL.PIXEL_MEAN", "[1.0]"], r"MODEL.PIXEL_MEAN \[1.0\]: give 3 numbers, for .* RGB"),
        (["INPUT.FORMAT", "L", "MODEL.PIXEL_STD", "[1.0, 2.0]"], "PIXEL_STD .*: give 1 or 3 num"),
        *[
            (["MODEL.META_ARCHITECTURE", name], f"META_ARCHITECTURE {name}: choose GeneralizedRC")
            for name in ("PanopticFPN", "ProposalNetwork", "SemanticSegmentor", "FasterRCNN")
        ],
        (["MODEL.LOAD_PROPOSALS", "True"], "MODEL.LOAD_PROPOSALS: "),
    ],
)
def test_the_rest_is_refused_when_the_config_is_read(opts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_cfg(config("faster"), opts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_without_a_gpu_all_runs_on_the_cpu(device: str) -> None:
    assert load_cfg(config("faster"), ["MODEL.DEVICE", device]).MODEL.DEVICE == "cpu"
