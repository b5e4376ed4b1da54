"""Training of a classifier: learning rate, accumulation, resumption, processes, accuracy."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from helpers.static_networks import randomised
from helpers.training import assert_same_weights, evaluated, final_weights, metrics
from helpers.training import run as run_python
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.engine.classification import (
    classifier_metrics,
    count_hits,
    evaluate_classifier,
    train_classifier,
)
from dgnet_det.engine.trainer import Trainer
from dgnet_det.errors import UserError
from dgnet_det.modeling.classifier import build_classifier

MakeCfg = Callable[..., CfgNode]


def run(cfg: CfgNode, *, resume: bool = False) -> dict:
    seed_all_rng(cfg.SEED)
    return train_classifier(cfg, resume=resume)


def assert_same_results(results: dict, expected: dict) -> None:
    assert results.keys() == expected.keys() == {"top1", "top5", "wiring"}
    assert (results["top1"], results["top5"]) == (expected["top1"], expected["top5"])
    assert results["wiring"] == pytest.approx(expected["wiring"], rel=1e-6)


class InterruptionError(RuntimeError):
    pass


def run_until_an_interruption(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until iteration 6; the last checkpoint is that after 4."""
    original = Trainer.run_step

    def interrupted(self: Trainer) -> None:
        if self.iter == 6:
            raise InterruptionError
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", interrupted)
        with pytest.raises(InterruptionError):
            run(cfg)
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_0000003.pth"
    torch.rand(7)  # a new process would be in another state


def test_a_resumed_run_draws_the_same_branches(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise, temperature and budget of a DRNet-style network follow from the iteration."""
    overrides = (
        *("MODEL.BACKBONE.NAME", "build_drnet_backbone", "SOLVER.CHECKPOINT_PERIOD", "4"),
        *("MODEL.DRNET.BUDGET", "0.8", "MODEL.DRNET.BUDGET_WEIGHT", "5.0"),
    )
    whole, broken = make_cfg(*overrides, output="whole"), make_cfg(*overrides, output="broken")
    expected = run(whole)
    run_until_an_interruption(broken, monkeypatch)
    assert train_classifier(broken, resume=True)["wiring"] == pytest.approx(expected["wiring"])
    assert_same_weights(broken.OUTPUT_DIR, whole.OUTPUT_DIR)


def test_a_resumed_run_ends_with_the_same_weights(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its learning rate follows the formula, its metrics are written, its checkpoint
    evaluates to its result."""
    # Checkpoints in mid-epoch; dropout draws random numbers; momentum has a history.
    overrides = (
        *("SOLVER.CHECKPOINT_PERIOD", "4", "CLASSIFICATION.DROPOUT", "0.3"),
        *("CLASSIFICATION.ACCUMULATION", "2", "TEST.EVAL_PERIOD", "2"),
        *("CLASSIFICATION.WARMUP_EPOCHS", "2", "SOLVER.WARMUP_FACTOR", "0.1"),
    )
    whole, broken = make_cfg(*overrides, output="whole"), make_cfg(*overrides, output="broken")
    rates = []
    original = Trainer.run_step

    def recording(self: Trainer) -> None:
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", recording)
        expected_results = run(whole)
    run_until_an_interruption(broken, monkeypatch)
    assert_same_results(train_classifier(broken, resume=True), expected_results)
    assert_same_weights(broken.OUTPUT_DIR, whole.OUTPUT_DIR)

    total, warmup = 9, 6  # 18 images, 6 a batch, whatever the accumulation
    formula = [
        0.05 * (0.1 + 0.9 * t / warmup)
        if t < warmup
        else 0.05 * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2
        for t in range(total)
    ]
    assert [rate[0] for rate in rates] == pytest.approx(formula, rel=1e-5)

    records = metrics(whole.OUTPUT_DIR)
    assert evaluated(whole.OUTPUT_DIR, "top1") == [1, 3, 5, 7, 9]
    assert records[-1]["top1"] == expected_results["top1"]
    assert records[1]["total_loss"] > 0
    assert records[1]["wiring/res3.0/alpha_std"] > 0
    assert list(Path(whole.OUTPUT_DIR).glob("events.out.tfevents.*"))

    weights = str(Path(whole.OUTPUT_DIR) / "model_final.pth")
    alone = make_cfg("MODEL.WEIGHTS", weights, output="alone")
    assert_same_results(evaluate_classifier(alone), expected_results)
    assert_same_results(evaluate_classifier(whole, resume=True), expected_results)
    assert [path.name for path in Path(alone.OUTPUT_DIR).iterdir()] == ["log.txt"]


def test_accumulation_changes_nothing(make_cfg: MakeCfg) -> None:
    # Batch statistics are those of a micro-batch: a norm without them.
    common = (
        *("MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.BASE_LR", "0.01"),
        *("CLASSIFICATION.EPOCHS", "1", "CLASSIFICATION.WARMUP_EPOCHS", "0"),
    )
    whole = make_cfg(*common, output="whole")
    split = make_cfg(*common, "CLASSIFICATION.ACCUMULATION", "3", output="split")
    run(whole)
    run(split)
    expected, actual = final_weights(whole.OUTPUT_DIR), final_weights(split.OUTPUT_DIR)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-6)


def test_the_budget_loss_is_added(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []

    def recording(self: Trainer, loss: dict[str, torch.Tensor], *rest: float) -> None:
        losses.append(float(sum(loss.values())))

    monkeypatch.setattr(Trainer, "_write_metrics", recording)
    one_epoch = ("CLASSIFICATION.EPOCHS", "1", "CLASSIFICATION.WARMUP_EPOCHS", "0")
    run(make_cfg(*one_epoch))
    without, losses = losses[0], []
    run(make_cfg(*one_epoch, "MODEL.DGNET.SPARSITY_WEIGHT", "2.0", output="sparse"))
    assert losses[0] == pytest.approx(without + 2.0, rel=1e-4)  # all edges are open at the start


def test_mixed_precision_trains(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_cfg("SOLVER.AMP.ENABLED", "True", "CLASSIFICATION.EPOCHS", "2")
    dtypes: set[torch.dtype] = set()
    original = torch.nn.Linear.forward

    def recording(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        output = original(self, x)
        if self.training:
            dtypes.add(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.Linear, "forward", recording)
    run(cfg)
    # The head's, and the routers', which stay in float32.
    assert dtypes == {torch.bfloat16, torch.float32}
    weights = final_weights(cfg.OUTPUT_DIR)
    assert {w.dtype for w in weights.values()} == {torch.float32, torch.int64}
    assert all(w.isfinite().all() for w in weights.values())


def test_a_compiled_training_ends_with_the_same_weights(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    common = (
        *("MODEL.DGNET.WIRING", "residual", "MODEL.DGNET.STAGES", "['res5']"),
        *("CLASSIFICATION.EPOCHS", "1", "CLASSIFICATION.WARMUP_EPOCHS", "0"),
        *("SOLVER.BASE_LR", "0.01"),
    )
    plain = make_cfg(*common, output="plain")
    compiled = make_cfg(*common, "MODEL.COMPILE", "True", output="compiled")
    expected = run(plain)
    counters.clear()
    assert run(compiled)["wiring"] == pytest.approx(expected["wiring"], rel=1e-3)
    assert 2 <= counters["stats"]["unique_graphs"] <= 4  # training and evaluation, two batch sizes
    weights = final_weights(compiled.OUTPUT_DIR)
    for name, tensor in final_weights(plain.OUTPUT_DIR).items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_training_that_diverges_names_the_learning_rate(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.BASE_LR", "1e30", "CLASSIFICATION.WARMUP_EPOCHS", "0")
    with pytest.raises(UserError, match=r"SOLVER.BASE_LR 1e\+30, with a batch of 6: .* NaN"):
        run(cfg)


def test_two_processes_with_half_the_batch_match_one(
    make_cfg: MakeCfg, classifier: list[str], tmp_path: Path
) -> None:
    """naiveSyncBN shares its batch statistics between processes. Over few images and pixels they
    make rounding errors grow tenfold an iteration at a rate of 0.05. Of nine validation images,
    which cannot be shared evenly, each counts once."""
    overrides = ("MODEL.RESNETS.NORM", "naiveSyncBN", "SOLVER.BASE_LR", "0.0005")
    one, two, results = make_cfg(*overrides, output="one"), tmp_path / "two", tmp_path / "two.json"
    run_python(
        *("tools/train_classifier.py", *classifier, *overrides, "--num-gpus", "2"),
        *("--json", str(results), "OUTPUT_DIR", str(two)),
    )
    expected_results = run(one)
    expected, actual = final_weights(one.OUTPUT_DIR), final_weights(two)
    for name in expected:
        # naiveSyncBN's running variance is Bessel-corrected in one process and not in several,
        # where it does not count batches either.
        if not name.endswith(("running_var", "num_batches_tracked")):
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-3, atol=1e-5)
    found = json.loads(results.read_text())
    assert found["top1"] == pytest.approx(expected_results["top1"])
    assert found["wiring"] == pytest.approx(expected_results["wiring"], rel=0.1)


def test_a_static_checkpoint_is_fine_tuned(make_cfg: MakeCfg, tmp_path: Path) -> None:
    """In the residual wiring the classifier starts with its logits, head included."""
    static = randomised(torchvision.models.resnet18(num_classes=3))
    torch.save(static.state_dict(), tmp_path / "static.pth")
    cfg = make_cfg(
        *("MODEL.DGNET.WIRING", "residual", "CLASSIFICATION.EPOCHS", "1"),
        *("CLASSIFICATION.WARMUP_EPOCHS", "0", "SOLVER.BASE_LR", "0.001"),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", "64", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
        *("MODEL.WEIGHTS", str(tmp_path / "static.pth")),
    )
    start = build_classifier(cfg).eval()
    DGNetCheckpointer(start).load(cfg.MODEL.WEIGHTS)
    images = torch.randint(0, 256, (2, 3, 96, 64)).float()
    with torch.no_grad():
        expected = static((images - start.pixel_mean) / start.pixel_std)
        assert (start(images) - expected).norm() < 1e-5 * expected.norm()
    run(cfg)
    final = final_weights(cfg.OUTPUT_DIR)
    gammas = [tensor for name, tensor in final.items() if ".gammas." in name]
    assert gammas
    assert all(gamma.abs().gt(0).all() for gamma in gammas)
    for name, tensor in start.state_dict().items():
        if name in ("backbone.stem.conv1.weight", "head.linear.weight"):
            assert 0 < (final[name] - tensor).norm() < 0.1 * tensor.norm()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("CLASSIFICATION.WARMUP_EPOCHS", "3"), r"WARMUP_EPOCHS 3: .*CLASSIFICATION\.EPOCHS 3"),
        (("CLASSIFICATION.EPOCHS", "0"), r"CLASSIFICATION\.EPOCHS 0: give at least 1"),
        (("MODEL.WEIGHTS", "/nowhere.pth"), r"MODEL\.WEIGHTS /nowhere\.pth"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    overrides: tuple[str, str], message: str, make_cfg: MakeCfg, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train_classifier(make_cfg(*overrides))
    assert list(tmp_path.iterdir()) == []


def test_evaluation_needs_a_checkpoint_with_this_head(make_cfg: MakeCfg, tmp_path: Path) -> None:
    cfg = make_cfg()
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: empty: this needs a classifier"):
        evaluate_classifier(cfg)
    state = build_classifier(cfg).state_dict()
    headless = {name: x for name, x in state.items() if not name.startswith("head.")}
    more_classes = {**state, "head.linear.weight": torch.zeros(7, 64)}
    for tensors, absent in (
        (headless, r"head\.linear\.bias, head\.linear\.weight"),
        (more_classes, r"head\.linear\.weight"),
    ):
        path = tmp_path / "part.pth"
        torch.save({"model": tensors}, path)
        with pytest.raises(UserError, match=rf"MODEL\.WEIGHTS .* missing .*{absent}"):
            evaluate_classifier(make_cfg("MODEL.WEIGHTS", str(path)))


# Best five classes, in order: 6 5 4 3 2; 0 1 2 3 4; 3 0 6 1 5; 2 6 0 4 1.
LOGITS = torch.tensor(
    [
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
        [5.0, 3.0, 0.0, 9.0, 1.0, 2.0, 4.0],
        [4.0, 2.0, 9.0, 0.0, 3.0, 1.0, 5.0],
    ]
)
# Fifth best; outside; best; fourth best.
LABELS = torch.tensor([2, 5, 3, 4])


class FromPixels(nn.Module):
    """Reads its logits off the images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return images[:, 0, 0]


def test_hits_are_counted_by_hand() -> None:
    assert count_hits(LOGITS, LABELS).tolist() == [1, 3]
    # Fewer than five classes.
    assert count_hits(LOGITS[:, :3], torch.tensor([0, 0, 0, 0])).tolist() == [2, 4]


def test_evaluate_sums_over_uneven_batches() -> None:
    images = LOGITS[:, None, None, :]
    data = [(images[i], int(LABELS[i])) for i in range(4)]
    model = FromPixels().train()
    result = classifier_metrics(model, DataLoader(data, batch_size=3), "cpu")
    assert result == pytest.approx({"top1": 25.0, "top5": 75.0})
    assert model.training
