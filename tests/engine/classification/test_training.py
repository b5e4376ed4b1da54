"""Schedule, accumulation, resumption, processes: what a training run must not depend on."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng

from dgnet_det.data.classification import build_datasets
from dgnet_det.engine.classification import evaluate_checkpoint, train
from dgnet_det.engine.classification.loading import build_test_loader
from dgnet_det.engine.classification.training import ClassifierTrainer

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "ImageNet-Classification" / "DG_R_18.yaml"
CPU = torch.device("cpu")


def run(cfg: CfgNode, *, resume: bool = False) -> dict[str, float]:
    seed_all_rng(cfg.SEED)
    return train(cfg, CPU, resume=resume)


def final_weights(directory: str | Path) -> dict[str, torch.Tensor]:
    return torch.load(Path(directory) / "model_final.pth", weights_only=True)["model"]


def test_learning_rate_follows_the_formula_at_every_step(
    make_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    original = ClassifierTrainer.run_step

    def recording(self: ClassifierTrainer) -> None:
        rates.append({group["lr"] for group in self.optimizer.param_groups})
        original(self)

    monkeypatch.setattr(ClassifierTrainer, "run_step", recording)
    cfg = make_cfg(
        *("CLASSIFICATION.ACCUMULATION", "2", "CLASSIFICATION.EPOCHS", "5"),
        *("CLASSIFICATION.WARMUP_EPOCHS", "2", "SOLVER.WARMUP_FACTOR", "0.1"),
    )
    run(cfg)
    per_epoch = 18 // 6  # whatever the accumulation
    total, warmup = 5 * per_epoch, 2 * per_epoch
    expected = [
        0.05 * (0.1 + 0.9 * t / warmup)
        if t < warmup
        else 0.05 * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2
        for t in range(total)
    ]
    assert [len(rate) for rate in rates] == [1] * total
    assert [rate.pop() for rate in rates] == pytest.approx(expected, rel=1e-5)


def test_accumulation_changes_nothing(make_cfg: Callable[..., CfgNode]) -> None:
    # Batch statistics are those of a micro-batch: a norm without them.
    norm = ("MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.BASE_LR", "0.01")
    whole, split = (
        make_cfg(*norm, output="whole"),
        make_cfg(*norm, "CLASSIFICATION.ACCUMULATION", "3", output="split"),
    )
    run(whole)
    run(split)
    expected, actual = final_weights(whole.OUTPUT_DIR), final_weights(split.OUTPUT_DIR)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-6)


class InterruptionError(RuntimeError):
    pass


def test_a_resumed_run_ends_with_the_same_weights(
    make_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checkpoints in mid-epoch; dropout draws random numbers; momentum has a history.
    overrides = (
        *("SOLVER.CHECKPOINT_PERIOD", "4", "CLASSIFICATION.DROPOUT", "0.3"),
        *("CLASSIFICATION.ACCUMULATION", "2", "TEST.EVAL_PERIOD", "2"),
    )
    whole, broken = make_cfg(*overrides, output="whole"), make_cfg(*overrides, output="broken")
    expected_results = run(whole)

    original = ClassifierTrainer.run_step

    def interrupted(self: ClassifierTrainer) -> None:
        if self.iter == 6:
            raise InterruptionError
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "run_step", interrupted)
        with pytest.raises(InterruptionError):
            run(broken)
    assert (Path(broken.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_0000003.pth"
    torch.rand(7)  # a new process would be in another state
    torch.manual_seed(99)
    assert train(broken, CPU, resume=True) == expected_results

    expected, actual = final_weights(whole.OUTPUT_DIR), final_weights(broken.OUTPUT_DIR)
    assert expected.keys() == actual.keys()
    different = [name for name in expected if not torch.equal(expected[name], actual[name])]
    assert different == []


def test_the_sparsity_loss_is_added(
    make_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []

    def recording(self: ClassifierTrainer, loss: dict[str, torch.Tensor], *rest: float) -> None:
        losses.append(float(loss["loss"]))

    monkeypatch.setattr(ClassifierTrainer, "_write_metrics", recording)
    one_epoch = ("CLASSIFICATION.EPOCHS", "1", "CLASSIFICATION.WARMUP_EPOCHS", "0")
    run(make_cfg(*one_epoch))
    without, losses = losses[0], []
    run(make_cfg(*one_epoch, "MODEL.DGNET.SPARSITY_WEIGHT", "2.0", output="sparse"))
    assert losses[0] == pytest.approx(without + 2.0, rel=1e-4)  # all edges are open at the start


def test_metrics_are_written(make_cfg: Callable[..., CfgNode]) -> None:
    cfg = make_cfg()
    results = run(cfg)
    lines = [
        json.loads(line)
        for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    ]
    assert [line["iteration"] for line in lines] == [8, 9]
    assert lines[0]["total_loss"] > 0
    assert {"top1": lines[1]["top1"], "top5": lines[1]["top5"]} == results
    assert list(Path(cfg.OUTPUT_DIR).glob("events.out.tfevents.*"))


def test_mixed_precision_trains(
    make_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_small_set_is_learnt(make_cfg: Callable[..., CfgNode]) -> None:
    # Three colours: 10 epochs separate them, from logits that start alike.
    assert run(make_cfg("CLASSIFICATION.EPOCHS", "10"))["top1"] > 60


def test_warm_start_from_a_static_network(make_cfg: Callable[..., CfgNode], tmp_path: Path) -> None:
    static = make_cfg("MODEL.DGNET.EDGE_WEIGHTS", "none", output="static")
    run(static)
    weights = str(Path(static.OUTPUT_DIR) / "model_final.pth")
    residual = make_cfg(
        *("MODEL.DGNET.WIRING", "residual", "MODEL.WEIGHTS", weights),
        *("SOLVER.BASE_LR", "0.0"),
        output="residual",
    )
    run(residual)
    before, after = final_weights(static.OUTPUT_DIR), final_weights(residual.OUTPUT_DIR)
    parameters = [n for n in before if "running" not in n and "num_batches" not in n]
    assert all(torch.equal(before[name], after[name]) for name in parameters)
    assert any(".gammas." in name for name in after.keys() - before.keys())


def tool(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "tools" / "train_classifier.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), script, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("norm", "learning_rate"),
    [
        ("FrozenBN", "0.01"),
        # Shares its batch statistics between processes. Over few images and pixels they make
        # rounding errors grow tenfold an iteration at a rate of 0.05.
        ("naiveSyncBN", "0.0005"),
    ],
)
def test_two_processes_with_half_the_batch_match_one(
    norm: str, learning_rate: str, make_cfg: Callable[..., CfgNode], options: list[str]
) -> None:
    overrides = ("MODEL.RESNETS.NORM", norm, "SOLVER.BASE_LR", learning_rate)
    one, two = make_cfg(*overrides, output="one").OUTPUT_DIR, make_cfg(output="two").OUTPUT_DIR
    run(make_cfg(*overrides, output="one"))
    done = tool("--config-file", str(CONFIG), *options, *overrides, "OUTPUT_DIR", two, processes=2)
    assert done.returncode == 0, done.stderr
    expected, actual = final_weights(one), final_weights(two)
    for name in expected:
        # naiveSyncBN's running variance is Bessel-corrected in one process and not in several,
        # where it does not count batches either.
        if not name.endswith(("running_var", "num_batches_tracked")):
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-3, atol=1e-5)


def test_processes_share_the_validation_images(
    make_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_cfg()
    _, test_set = build_datasets(cfg)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        shares.append(list(build_test_loader(cfg, test_set).dataset.indices))  # type: ignore[attr-defined]
    assert sorted(index for share in shares for index in share) == list(range(9))
    assert {len(share) for share in shares} == {2, 3}


def test_two_processes_count_each_validation_image_once(
    make_cfg: Callable[..., CfgNode], options: list[str], tmp_path: Path
) -> None:
    cfg = make_cfg()
    expected = run(cfg)  # nine images: no even split
    result = tmp_path / "result.json"
    done = tool(
        *("--config-file", str(CONFIG), "--eval-only", "--json", str(result), *options),
        *("OUTPUT_DIR", str(tmp_path / "evaluation")),
        *("MODEL.WEIGHTS", str(Path(cfg.OUTPUT_DIR) / "model_final.pth")),
        processes=2,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(result.read_text()) == pytest.approx(expected)


def test_eval_only_repeats_the_training_runs_result(make_cfg: Callable[..., CfgNode]) -> None:
    cfg = make_cfg()
    results = run(cfg)
    weights = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    assert evaluate_checkpoint(make_cfg("MODEL.WEIGHTS", weights), CPU) == results
    assert evaluate_checkpoint(cfg, CPU, resume=True) == results
