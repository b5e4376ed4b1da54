"""Reading of COCO JSON."""

import json
from pathlib import Path

import pytest
from helpers.checked_sets import DETECTION
from helpers.coco_sets import Splits

from dgnet_det.data import check_datasets, load_cfg_with_data
from dgnet_det.data.coco import category_names
from dgnet_det.errors import UserError


def test_a_file_is_parsed_once(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the config and the checks; Detectron2 reads it anew for its images."""
    parsed: list[str] = []
    load = json.load
    monkeypatch.setattr(json, "load", lambda file: parsed.append(file.name) or load(file))
    cfg = load_cfg_with_data(DETECTION, splits.overrides)
    check_datasets(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    assert sorted(parsed) == sorted([str(splits.train.json), str(splits.val.json)])


def test_a_changed_file_is_parsed_anew(splits: Splits) -> None:
    path = str(splits.train.json)
    assert category_names(path) == ["kite"]
    splits.train.coco["categories"].append({"id": 1, "name": "ball"})
    splits.train.write()
    assert category_names(path) == ["ball", "kite"]


@pytest.mark.parametrize(
    ("categories", "problem"),
    [
        ([{"id": 1}], "has no 'name': give a text"),
        ([{"name": "a"}], "has no 'id': give a whole number"),
        ([{"id": "3", "name": "a"}], "id '3' is not a whole number, without quotes"),
        ([{"id": 3, "name": " "}], "name ' ' is not a text"),
        (["a"], "'a' is no object"),
    ],
)
def test_categories_that_say_too_little(categories: list, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [{"id": 1}], "categories": categories}))
    with pytest.raises(UserError) as caught:
        category_names(str(path))
    assert str(caught.value).startswith(f"{path}: a category of 'categories': {problem}")
