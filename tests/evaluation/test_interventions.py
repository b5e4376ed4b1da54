"""Interventions on detectors whose edge weights decide, and on ones that have nothing to decide."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers.detectors import SMALL, config, small_predictor
from helpers.narrow import NARROW
from PIL import Image
from skimage import data
from torch import Tensor, nn

from dgnet_det.data import load_cfg_with_data, read_image
from dgnet_det.errors import UserError
from dgnet_det.evaluation import interventions
from dgnet_det.evaluation.interventions import (
    another_of_each,
    intervene,
    mean_score_change,
    router_hooks,
)
from dgnet_det.export.predictor import Predictor
from dgnet_det.modeling.observation import dynamic_graphs
from studies.coco import write_split

SMALLER = [
    *NARROW, "MODEL.DGNET.FAMILY", "resnet", "MODEL.RESNETS.DEPTH", "18",
    "MODEL.ROI_HEADS.NUM_CLASSES", "2", "DATALOADER.NUM_WORKERS", "0",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "40",
]  # fmt: skip
PHOTOS = [data.rocket(), data.coffee(), data.astronaut(), data.chelsea()]


def write_images(folder: Path, pictures: Sequence[np.ndarray]) -> list[Path]:
    paths = [folder / f"{k}.png" for k in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return paths


def annotate_by(predictor: Predictor, paths: Sequence[Path], folder: Path) -> str:
    """A dataset in which what a detector finds is the truth."""
    items = []
    for path in paths:
        found = predictor(read_image(path, "BGR"))
        boxes = [[x, y, u - x, v - y] for x, y, u, v in found.pred_boxes.tensor.tolist()]
        objects = list(zip(found.pred_classes.tolist(), boxes, strict=True))
        items.append((path.name, Image.open(path), objects))
    write_split(folder, "val", ["cat", "dog"], {}, items)
    name = str(folder / "annotations/val.json")
    own = ["DATASETS.VAL_JSON", name, "DATASETS.VAL_IMAGES", str(folder / "val")]
    load_cfg_with_data(config("faster"), [*SMALL, *SMALLER, *own])  # registers it
    return name


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    crops = [photo[20:84, 40 : 104 + 8 * k] for k, photo in enumerate(PHOTOS)]
    return write_images(tmp_path_factory.mktemp("images"), crops)


@pytest.fixture(scope="module")
def detector(paths: list[Path]) -> tuple[Predictor, str]:
    """A detector whose routers follow the image, all edges open, and a dataset that it solves."""
    torch.manual_seed(0)
    predictor = small_predictor("faster", *SMALLER)
    for graph in dynamic_graphs(predictor.model).values():
        nn.init.constant_(graph.thresholds, -1.0)
    return predictor, annotate_by(predictor, paths, paths[0].parent / "set")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interventions, "RESAMPLES", 100)


def test_a_detector_that_depends_on_its_edge_weights(
    detector: tuple[Predictor, str], paths: list[Path]
) -> None:
    predictor, name = detector
    result = intervene(predictor.model, predictor.cfg, name)
    assert result["num_images"] == len(paths)
    assert result["ap"]["own"] > 95
    for kind in ("mean", "other"):
        difference = result["own_minus"][kind]
        assert difference["value"] == pytest.approx(result["ap"]["own"] - result["ap"][kind])
        assert 0 < difference["low"] < difference["value"] < difference["high"]
        assert 0 < result["score_change"][kind] < 1
    assert json.loads(json.dumps(result)) == result

    outputs: dict[str, list[np.ndarray]] = {}
    with router_hooks(
        predictor.model, lambda name, alpha: outputs.setdefault(name, []).append(alpha[0].numpy())
    ):
        for path in paths:
            predictor(read_image(path, "BGR"))
    stds = np.concatenate([np.std(rows, axis=0, ddof=1) for rows in outputs.values()])
    assert result["spread"]["alpha_std"] == pytest.approx(stds.mean(), rel=1e-3)
    assert result["spread"]["alpha_std_max"] == pytest.approx(stds.max(), rel=1e-3)

    # With the mean weights it is the static network of those weights.
    static = small_predictor("faster", *SMALLER, "MODEL.DGNET.EDGE_WEIGHTS", "static")
    state = {k: v for k, v in predictor.model.state_dict().items() if ".linear." not in k}
    for router, rows in outputs.items():
        mean = torch.tensor(np.mean(rows, axis=0))
        state[f"backbone.bottom_up.{router}.bias"] = torch.logit(mean)
    static.model.load_state_dict(state)
    unmoved = intervene(static.model, static.cfg, name)
    assert unmoved["ap"]["own"] == pytest.approx(result["ap"]["mean"], abs=0.5)
    # And a static network has nothing to lose.
    for kind in ("mean", "other"):
        assert [*unmoved["own_minus"][kind].values()] == pytest.approx([0, 0, 0], abs=1e-6)
        assert unmoved["score_change"][kind] == pytest.approx(0, abs=1e-6)
    assert unmoved["spread"]["alpha_std"] == pytest.approx(0, abs=1e-6)


def test_nodes_that_are_absent_in_some_images(tmp_path: Path, paths: list[Path]) -> None:
    predictor = small_predictor("faster", *SMALLER, "MODEL.DGNET.WIRING", "paper")
    name = annotate_by(predictor, paths, tmp_path)
    ran: dict[str, int] = {}

    def count(name: str, alpha: Tensor) -> None:
        ran[name] = ran.get(name, 0) + 1

    with router_hooks(predictor.model, count):
        for path in paths:
            predictor(read_image(path, "BGR"))
    assert any(0 < number < len(paths) for number in ran.values())
    result = intervene(predictor.model, predictor.cfg, name)
    assert np.isfinite([*result["ap"].values(), *result["spread"].values()]).all()
    assert result["ap"]["own"] > 95


def test_some_of_the_images(detector: tuple[Predictor, str]) -> None:
    predictor, name = detector
    images = DatasetCatalog.get(name)[2:]
    result = intervene(predictor.model, predictor.cfg, name, images)
    assert result["num_images"] == 2
    assert result["ap"]["own"] > 95  # the other images' objects are not missed
    with pytest.raises(UserError, match="give at least two"):
        intervene(predictor.model, predictor.cfg, name, images[:1])
    for graph in dynamic_graphs(predictor.model).values():
        assert not any(router._forward_hooks for router in graph.routers.values())
    for head in predictor.model.modules():
        if hasattr(head, "test_score_thresh"):
            head.test_score_thresh = 1.0
    with pytest.raises(UserError, match="finds nothing"):
        intervene(predictor.model, predictor.cfg, name, images)
    with pytest.raises(UserError, match="no edge weights"):
        intervene(nn.Linear(1, 1), predictor.cfg, name)


def test_every_image_gets_anothers() -> None:
    for count in (2, 3, 10, 101):
        another = another_of_each(count)
        assert sorted(another) == list(range(count))
        assert (another != np.arange(count)).all()
        np.testing.assert_array_equal(another, another_of_each(count))


def test_score_changes_by_hand() -> None:
    def box(image: int, label: int, x: float, score: float) -> dict:
        return {"image_id": image, "category_id": label, "bbox": [x, 0, 10, 10], "score": score}

    before = [box(1, 1, 0, 0.9), box(1, 2, 0, 0.5), box(2, 1, 0, 0.4)]
    # The first has two candidates, of which the nearer counts; the others none: another class, and
    # too far.
    after = [box(1, 1, 3, 0.8), box(1, 1, 1, 0.6), box(2, 1, 8, 0.4), box(2, 2, 0, 0.4)]
    assert mean_score_change(before, after) == pytest.approx((0.3 + 0.5 + 0.4) / 3)
