"""The evaluator's figures are those of Detectron2's with pycocotools, whatever computes them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import random_coco
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.evaluation import COCOEvaluator

from dgnet_det.errors import UserError
from dgnet_det.evaluation import coco
from dgnet_det.evaluation.coco import Evaluator

Register = Callable[[Path], str]


@pytest.fixture
def register() -> Iterator[Register]:
    """Registers a COCO JSON file until the test ends, with its classes known."""
    names = []

    def register(path: Path) -> str:
        register_coco_instances(str(path), {}, str(path), str(path.parent))
        load_coco_json(str(path), str(path.parent), str(path))
        names.append(str(path))
        return str(path)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def metrics(evaluator: COCOEvaluator, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What Detectron2 makes of detections in COCO's format, classes counted from 0."""
    contiguous = evaluator._metadata.thing_dataset_id_to_contiguous_id
    predictions: dict[int, list[dict[str, Any]]] = {}
    for result in results:
        label = contiguous[result["category_id"]]
        predictions.setdefault(result["image_id"], []).append(result | {"category_id": label})
    evaluator.reset()
    evaluator._predictions = [
        {"image_id": image, "instances": boxes} for image, boxes in predictions.items()
    ]
    return evaluator.evaluate()


def assert_equal(name: str, results: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Both implementations' figures of every task and class agree to the last bit but one."""
    expected = metrics(COCOEvaluator(name, output_dir=None, use_fast_impl=False), results)
    evaluator = Evaluator(name, str(folder))
    got = metrics(evaluator, results)
    assert expected.keys() == got.keys()
    for task in expected:
        assert expected[task].keys() == got[task].keys()
        for key, value in expected[task].items():
            np.testing.assert_allclose(got[task][key], value, rtol=0, atol=1e-12, err_msg=key)
    assert len(evaluator.found) == len(results)
    return got


@pytest.mark.parametrize(
    ("tasks", "categories"), [((), 5), ((), 1), (("masks",), 3), (("keypoints",), 1)]
)
def test_random_sets(
    tasks: tuple[str, ...], categories: int, tmp_path: Path, register: Register
) -> None:
    truth, results = random_coco(
        np.random.default_rng(categories),
        images=30,
        categories=categories,
        detections=40,
        **dict.fromkeys(tasks, True),
    )
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    got = assert_equal(register(path), results, tmp_path)
    assert got.keys() == {"bbox", *({"masks": "segm"}.get(task, task) for task in tasks)}
    assert 1 < got["bbox"]["AP"] < 99


@pytest.fixture
def small(tmp_path: Path, register: Register) -> tuple[str, list[dict[str, Any]]]:
    """A set of few images, and detections on it."""
    truth, results = random_coco(np.random.default_rng(0), images=4, categories=2)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return register(tmp_path / "truth.json"), results


def test_pycocotools_evaluates_without_faster_coco_eval(
    tmp_path: Path, small: tuple[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco, "COCOeval_faster", None)
    assert assert_equal(*small, tmp_path)["bbox"]["AP"] > 1


def test_a_class_that_the_dataset_does_not_have(small: tuple[str, list]) -> None:
    evaluator = Evaluator(small[0])
    evaluator.reset()
    found = {"image_id": 1, "category_id": 2, "bbox": [1, 1, 9, 9], "score": 0.5}
    evaluator._predictions = [{"image_id": 1, "instances": [found]}]
    with pytest.raises(UserError, match=r"number 2 \(from 0\), but the dataset has 2"):
        evaluator.evaluate()


def test_nothing_found_has_no_ap(small: tuple[str, list]) -> None:
    evaluator = Evaluator(small[0])
    evaluator.reset()
    evaluator._predictions = [{"image_id": 1, "instances": []}]
    assert np.isnan(evaluator.evaluate()["bbox"]["AP"])
