"""faster-coco-eval gives pycocotools' figures, through Detectron2's evaluator and its absence."""

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import random_coco
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.cocoeval import COCOeval

import dgnet_det.evaluation.coco
from dgnet_det.evaluation.coco import Evaluator
from studies.tree_crowns import find_photographs, write_tree_crowns

DETECTIONS = Path(__file__).parent / "data" / "tree_crown_detections.json"
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
    assert evaluator._use_fast_impl
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


def test_a_trained_detector_on_tree_crowns(tmp_path: Path, register: Register) -> None:
    """The detections are those of `make demo` above a score of 0.3: rows of image, x, y, width,
    height and score."""
    write_tree_crowns(tmp_path, find_photographs())
    name = register(tmp_path / "tree_crowns" / "annotations" / "val.json")
    results = [
        {"image_id": image, "category_id": 1, "bbox": box, "score": score}
        for image, *box, score in json.loads(DETECTIONS.read_text())
    ]
    got = assert_equal(name, results, tmp_path)
    assert got["bbox"]["AP50"] > 50


def test_without_faster_coco_eval_pycocotools_evaluates(
    tmp_path: Path, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, results = random_coco(np.random.default_rng(0), images=4, categories=2)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    name = register(path)
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", COCOeval)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    evaluator = runpy.run_path(dgnet_det.evaluation.__file__)["Evaluator"](name, str(tmp_path))
    assert not evaluator._use_fast_impl
    assert metrics(evaluator, results)["bbox"]["AP"] > 1
