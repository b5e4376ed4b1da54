"""Running ``dgnet check`` on a small dataset, and spoiling it."""

import json
from typing import Any

from helpers.coco_sets import Splits
from helpers.configs import ROOT

from dgnet_cli import check_dataset
from dgnet_det.errors import UserError

CONFIGS = ROOT / "configs"
DETECTION, MASK, KEYPOINT = (
    str(CONFIGS / f"{name}_rcnn_DG_R_50_residual_FPN_1x.yaml")
    for name in (
        "COCO-Detection/faster",
        "COCO-InstanceSegmentation/mask",
        "COCO-Keypoints/keypoint",
    )
)


def inspect(splits: Splits, *arguments: str) -> dict[str, Any]:
    """The tool's JSON. Its exit must be as the JSON says, and nothing else be left behind."""
    out = splits.root / "out" / "report.json"
    sets = [[str(split.json), str(split.images)] for split in (splits.train, splits.val)]
    failed = None
    try:
        check_dataset.main([*sets[0], "--val", *sets[1], "--json", str(out), *arguments])
    except UserError as error:
        failed = str(error)
    report = json.loads(out.read_text())
    assert bool(report["errors"]) is (failed is not None)
    if failed:
        assert failed.startswith(report["errors"][0]["line"])
    assert [path.name for path in out.parent.iterdir()] == ["report.json"]
    return report


def found(report: dict[str, Any], severity: str, kind: str) -> str:
    """The line of the only finding of this severity; it names a file of the dataset."""
    (finding,) = report[severity]
    assert finding["kind"] == kind
    assert finding["message"].startswith("/")
    assert "\n" not in finding["line"]
    return finding["line"]


def change(splits: Splits, group: str, number: int, **values: Any) -> None:
    """Give an entry of the training set other values; ``...`` takes one out."""
    changed = {**splits.train.coco[group][number - 1], **values}
    splits.train.coco[group][number - 1] = {k: v for k, v in changed.items() if v is not ...}
    splits.train.write()
