"""Class names in checkpoints, and what is said where they are not the data's."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from helpers.static_networks import Detector, config, detectron2_resnet, saved
from torch import nn

from dgnet_det.checkpoint import DGNetCheckpointer, class_names_in
from dgnet_det.errors import UserError

FRUIT = ["apple", "fig", "pear"]
NEEDED = "a whole detector"


class Head(nn.Module):
    """A layer that does not know classes, and one that does."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.box = nn.Linear(2, 4)
        self.label = nn.Linear(2, num_classes)


def written(folder: Path, names: list[str], num_classes: int = 3) -> tuple[Head, str]:
    model = Head(num_classes)
    DGNetCheckpointer(model, str(folder), class_names=names).save("model_final")
    return model, str(folder / "model_final.pth")


def test_names_are_saved_and_do_not_disturb_detectron2(tmp_path: Path) -> None:
    model, path = written(tmp_path, FRUIT)
    assert class_names_in(path) == FRUIT
    loaded = Head(3)
    assert DetectionCheckpointer(loaded).load(path) == {"class_names": FRUIT}
    assert torch.equal(loaded.label.weight, model.label.weight)


@pytest.mark.parametrize("content", [{}, {"class_names": "tree"}, {"class_names": [1, 2]}])
def test_a_checkpoint_without_names_has_none(content: dict, tmp_path: Path) -> None:
    path = saved({"model": Head(1).state_dict(), **content}, tmp_path / "x.pth")
    assert class_names_in(path) == []
    assert class_names_in(str(tmp_path / "missing.pth")) == []
    assert class_names_in("") == []


CLASSES = "trained for the classes apple, fig, pear, but the data have"


@pytest.mark.parametrize(
    ("saved_names", "names", "warning"),
    [
        (FRUIT, ["tree"], f"{CLASSES} tree; of another shape, so they start anew: label.weight"
         " [3, 2] → [1, 2], label.bias [3] → [1]"),
        ([], ["tree"], "of another shape, so they start anew: label.weight [3, 2] → [1, 2],"
         " label.bias [3] → [1]"),
        (FRUIT, ["fig", "apple", "pear"], f"{CLASSES} fig, apple, pear"),
        (FRUIT, FRUIT, None),
        ([], FRUIT, None),
    ],
)  # fmt: skip
def test_fine_tuning(
    saved_names: list[str], names: list[str], warning: str | None,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Other classes are told of, and their layer starts anew where their number differs."""
    source, path = written(tmp_path, saved_names)
    model = Head(len(names))
    DGNetCheckpointer(model, class_names=names).load(path, checkpointables=[])
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    expected = [f"MODEL.WEIGHTS {path}: {warning}"] if warning else []
    assert [record.getMessage() for record in warnings] == expected
    assert torch.equal(model.box.weight, source.box.weight)
    assert len(names) != 3 or torch.equal(model.label.weight, source.label.weight)


def test_resuming_needs_the_same_classes(tmp_path: Path) -> None:
    written(tmp_path, FRUIT)
    checkpointer = DGNetCheckpointer(Head(1), str(tmp_path), class_names=["tree"])
    with pytest.raises(UserError, match=r"model_final\.pth: trained for the .* another OUTPUT_DIR"):
        checkpointer.resume_or_load("", resume=True)
    DGNetCheckpointer(Head(3), str(tmp_path), class_names=FRUIT).resume_or_load("", resume=True)


def whole(model: nn.Module, folder: Path, names: list[str]) -> DGNetCheckpointer:
    return DGNetCheckpointer(model, str(folder), class_names=names, needed=NEEDED)


def test_evaluation_needs_the_same_classes(tmp_path: Path) -> None:
    _, path = written(tmp_path, FRUIT)
    evaluated = tmp_path / "evaluation"
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS .*final\.pth: trained for the .* tree:"):
        whole(Head(1), evaluated, ["tree"]).resume_or_load(path, resume=False)
    with pytest.raises(UserError, match="in the same order"):
        whole(Head(3), evaluated, FRUIT[::-1]).resume_or_load(path, resume=False)
    whole(Head(3), evaluated, FRUIT).resume_or_load(path, resume=False)


def test_evaluation_needs_a_file_with_every_tensor(tmp_path: Path) -> None:
    for resume in (False, True):
        with pytest.raises(UserError, match=f"MODEL.WEIGHTS: empty: this needs {NEEDED}"):
            whole(Head(3), tmp_path, []).resume_or_load("", resume=resume)
    tensors = Head(3).state_dict()
    path = saved({"model": tensors}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf": label\.bias \[3\] → \[5\], label\.weight .*{NEEDED}"):
        whole(Head(5), tmp_path, []).resume_or_load(path, resume=False)
    del tensors["box.bias"]
    path = saved({"model": tensors}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=rf"part\.pth: missing .* box\.bias: .*{NEEDED}"):
        whole(Head(3), tmp_path, []).resume_or_load(path, resume=False)


def test_a_static_detector_can_be_evaluated_in_the_residual_wiring(tmp_path: Path) -> None:
    """Its graph's tensors are not in the file, and do nothing at the start."""
    cfg = config("R_18")
    static = {f"backbone.bottom_up.{k}": x for k, x in detectron2_resnet(cfg).state_dict().items()}
    detector = Detector(cfg)
    fpn = {k: x for k, x in detector.state_dict().items() if "bottom_up" not in k}
    whole(detector, tmp_path, []).resume_or_load(
        saved({"model": static | fpn}, tmp_path / "static.pth"), resume=False
    )
    stem = "backbone.bottom_up.stem.conv1.weight"
    assert torch.equal(detector.state_dict()[stem], static[stem])
