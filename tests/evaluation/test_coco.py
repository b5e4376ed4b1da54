"""The evaluator's figures are those of Detectron2's with pycocotools, whatever computes them. AP of
resampled images is pycocotools' on datasets that contain the images so often."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.evaluation import COCOEvaluator
from helpers.coco_sets import random_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dgnet_det.errors import UserError
from dgnet_det.evaluation import coco
from dgnet_det.evaluation.coco import Evaluator, ResampledAP

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


IMAGES = 12


@pytest.fixture(scope="module")
def sets() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and detections, without ties between scores."""
    rng = np.random.default_rng(0)
    truth, found = random_coco(rng, images=IMAGES, categories=3, detections=30)
    for result in found:
        result["score"] += rng.uniform(-1e-4, 1e-4)
    return truth, found


def to_coco(content: dict[str, Any]) -> COCO:
    made = COCO()
    made.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        made.createIndex()
    return made


@pytest.mark.parametrize(
    "counts", [[1] * IMAGES, [3, 0, 1, 0, 2, 0, 0, 1, 4, 0, 1, 0], [0] * (IMAGES - 1) + [12]]
)
def test_it_is_that_of_pycocotools(
    counts: list[int], sets: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    truth, found = sets
    copies: dict[str, list[Any]] = {"images": [], "annotations": []}
    copied_found = []
    for image, count in zip(truth["images"], counts, strict=True):
        for _ in range(count):
            new = len(copies["images"]) + 1
            copies["images"].append({**image, "id": new})
            for a in truth["annotations"]:
                if a["image_id"] == image["id"]:
                    number = len(copies["annotations"]) + 1
                    copies["annotations"].append({**a, "image_id": new, "id": number})
            of_image = [r for r in found if r["image_id"] == image["id"]]
            copied_found += [{**r, "image_id": new} for r in of_image]
    copied = to_coco({**truth, **copies})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(copied, copied.loadRes(copied_found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ids = [image["id"] for image in truth["images"]]
    ap = ResampledAP(to_coco(truth), [dict(r) for r in found], ids)(np.array(counts))
    assert ap == pytest.approx(100 * evaluation.stats[0], abs=1e-9)
    assert ap > 1


def test_nothing_found_or_nothing_to_find(
    sets: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    truth, found = sets
    ids = [image["id"] for image in truth["images"]]
    assert ResampledAP(to_coco(truth), [], ids)(np.ones(IMAGES)) == 0
    no_objects = to_coco({**truth, "annotations": []})
    assert np.isnan(ResampledAP(no_objects, [dict(r) for r in found], ids)(np.ones(IMAGES)))


def test_annotations_numbered_from_0(tmp_path: Path, register: Register) -> None:
    """COCO's evaluation takes the match with an object of id 0 for none."""
    truth, _ = random_coco(np.random.default_rng(0), images=3, categories=1)
    for k, annotation in enumerate(truth["annotations"]):
        annotation |= {"id": k, "iscrowd": 0}
    (tmp_path / "a.json").write_text(json.dumps(truth))
    evaluator = Evaluator(register(tmp_path / "a.json"))
    perfect = [{**annotation, "score": 0.9} for annotation in truth["annotations"]]
    assert metrics(evaluator, perfect)["bbox"]["AP"] == pytest.approx(100)
