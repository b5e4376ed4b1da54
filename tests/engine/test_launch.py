"""Processes of torchrun, SLURM and Detectron2's launch; what is lost and started again."""

import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.configs import ROOT
from helpers.training import ENVIRONMENT, assert_same_weights, evaluated, run

from dgnet_det.engine.launch import launch, launched
from dgnet_det.errors import UserError

# Sends a signal to one of two processes at the start of an iteration, unless it was started anew.
LOSS = """
import os, signal
from detectron2.utils import comm
from dgnet_det.engine.trainer import Trainer

run_step = Trainer.run_step
def lost(self):
    if (self.iter, comm.get_rank()) == ({iteration}, {rank}) and not any(
        int(os.environ.get(name, 0)) for name in ("TORCHELASTIC_RESTART_COUNT", "AGAIN")
    ):
        os.kill(os.getpid(), signal.{signal})
    run_step(self)
Trainer.run_step = lost
"""
Lose = Callable[..., tuple[int, list[str]]]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def command(detector: list[str]) -> list[str]:
    """Nine iterations of two processes, with a checkpoint after every second, images of two
    groups, and workers."""
    return [
        "tools/train_net.py", *detector, "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "9",
        "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.BASE_LR", "0.01", "TEST.EVAL_PERIOD", "4",
        "DATALOADER.NUM_WORKERS", "1", "MODEL.DEVICE", "cpu", "INPUT.CROP.ENABLED", "True",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUTPUT_DIR of two processes of torchrun."""
    output = tmp_path_factory.mktemp("whole")
    result = run(*TORCHRUN, *command, "OUTPUT_DIR", str(output))
    assert result.stdout.count("Starting training from iteration 0") == 1
    assert re.search(r"batch +4 \(2 processes × 2\)", result.stdout)
    return output


@pytest.fixture
def lose(tmp_path: Path) -> Lose:
    """Writes a module that loses a process at a random iteration, and returns it with the option
    that imports it."""

    def write(name: str, seed: int) -> tuple[int, list[str]]:
        draw = random.Random(seed)
        iteration = draw.randrange(2, 8)
        code = LOSS.format(iteration=iteration, rank=draw.randrange(2), signal=name)
        (tmp_path / "loss.py").write_text(code)
        return iteration, ["--import", "loss"]

    return write


def test_a_killed_process_is_started_again_by_torchrun(
    command: list[str], whole: Path, lose: Lose, tmp_path: Path
) -> None:
    _, option = lose("SIGKILL", seed=1)
    run(
        *TORCHRUN, "--max-restarts", "1", *command, *option, "OUTPUT_DIR", str(tmp_path / "output"),
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )  # fmt: skip
    assert (tmp_path / "output/log.txt").read_text().count("Starting training from iteration") == 2
    assert_same_weights(tmp_path / "output", whole)


def test_sigterm_saves_a_checkpoint_and_resume_goes_on_from_it(
    command: list[str], whole: Path, lose: Lose, tmp_path: Path
) -> None:
    """Of one of two processes of Detectron2's launch, after the iteration that is running."""
    iteration, option = lose("SIGTERM", seed=2)
    output, path = tmp_path / "output", {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    words = [*command, *option, "--num-gpus", "2", "OUTPUT_DIR", str(output)]
    result = run(*words, expected=128 + signal.SIGTERM, **path)
    saved = output / f"model_{iteration:07d}.pth"
    assert result.stderr.splitlines()[-1] == (
        f"interrupted: {saved} is saved; to go on, add --resume"
    )
    assert "Traceback" not in result.stdout + result.stderr
    run(*words, "--resume", AGAIN="1", **path)
    assert_same_weights(output, whole)
    assert evaluated(output, "bbox/AP") == [3, 7, 9]


def test_a_killed_process_is_told_in_one_line(
    command: list[str], lose: Lose, tmp_path: Path
) -> None:
    _, option = lose("SIGKILL", seed=3)
    words = [*command, *option, "--num-gpus", "2", "OUTPUT_DIR", str(tmp_path / "output")]
    result = run(*words, expected=1, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert re.match(
        r"error: process [01] was ended by SIGKILL.*: .*/model_\d+\.pth is saved; to go on, add"
        " --resume$",
        result.stderr.splitlines()[-1],
    )


def test_two_machines_of_slurm_train_one_model(
    command: list[str], whole: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0",
        "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    words = [sys.executable, *command, "OUTPUT_DIR", str(tmp_path / "output")]
    machines = [
        subprocess.Popen(
            words, cwd=ROOT, env=ENVIRONMENT | variables | {"SLURM_PROCID": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [machine.communicate(timeout=300)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], printed
    assert_same_weights(tmp_path / "output", whole)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
         (5, 8, 1, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2, 0, 1)),  # a pod of a PyTorchJob
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "6", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2",
          "SLURM_TASKS_PER_NODE": "4(x2)"}, (6, 8, 2, 4)),
    ],
)  # fmt: skip
def test_launchers_are_told_by_their_variables(
    variables: dict[str, str], expected: tuple | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = launched()
    assert (found and found[1:]) == expected


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"processes": 2}, "--num-gpus: torchrun has started"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {}, "MASTER_ADDR and MASTER_PORT: not in the env"),
        ({"RANK": "0"}, {}, "RANK and WORLD_SIZE in the environment: set both or neither"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "2,1"}, {},
         "SLURM_TASKS_PER_NODE 2,1: start as many"),
        ({}, {"machines": 2}, "--num-machines 2: give --dist-url tcp://HOST:PORT"),
        ({}, {"machines": 2, "machine_rank": 2, "url": "tcp://a:1"}, "--machine-rank 2: give 0 to"),
        ({}, {"processes": 0}, "--num-gpus 0: give at least 1"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    variables: dict[str, str], options: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    from dgnet_det import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(UserError, match=message):
        launch(print, cfg, **options)
