"""What the command lines of all tools share."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.configs import ROOT

from dgnet_cli import arguments
from dgnet_cli.__main__ import TOOLS
from dgnet_cli.__main__ import main as dgnet
from dgnet_det.errors import UserError

# Asks every command, and every script of tools/, for help where torch cannot be imported.
HELP = """
import runpy, sys
sys.modules["torch"] = sys.modules["detectron2"] = None
from dgnet_cli.__main__ import TOOLS, main
for name, module in {"": "", **TOOLS}.items():
    try:
        sys.argv = ["bin/dgnet", *filter(None, [name]), "--help"]
        main()
    except SystemExit as end:
        assert end.code == 0
    if module not in ("", "env"):
        try:
            sys.argv = [f"tools/{module}.py", "--help"]
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            assert end.code == 0
"""


def test_help_needs_no_library() -> None:
    """So it answers at once. It says how the tool was called, examples too."""
    result = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True
    )
    scripts = {f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py")}
    usages = set(re.findall(r"^usage: (.*?) \[", result.stdout, re.M))
    assert usages == {"dgnet", *(f"dgnet {name}" for name in TOOLS), *scripts}
    assert len(scripts) == len(TOOLS) - 1  # `dgnet env` has none
    for name, module in TOOLS.items():
        assert f"\n  {name} " in result.stdout
        assert module == "env" or f"\n    tools/{module}.py " in result.stdout
    assert "%(prog)s" not in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "dgnet: error: argument COMMAND: invalid choice: 'trian'"),
        ([], "dgnet: error: the following arguments are required: COMMAND; see --help"),
        (["train", "--confg-file", "x"], "dgnet train: error: the following arguments are req"),
        (["train", "--config-file", "x", "--jsno", "y"], "dgnet train: error: unrecognized arg"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bin/dgnet", *words])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="2"):
            dgnet()
    finally:
        signal.signal(signal.SIGTERM, before)
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_overrides_are_told_from_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("DSC_0001.JPG").touch()
    parser = arguments.ConfigParser("A tool.")
    parser.add_argument("--input", nargs="+")
    parser.add_argument("--resume", action="store_true")
    words = "--input a DSC_0001.JPG MODEL.WEIGHTS x.pth --config-file c.yaml SEED 1 --resume"
    words += " --json REPORT.JSON"
    parser.add_argument("--json")
    args = parser.parse_args(words.split())
    assert args.json == "REPORT.JSON"  # which is not there yet
    assert args.input == ["a", "DSC_0001.JPG"]
    assert args.opts == ["MODEL.WEIGHTS", "x.pth", "SEED", "1"]
    assert args.config_file == "c.yaml"
    assert args.resume
    assert parser.parse_args(["--config-file", "c", "SEED=1"]).opts == ["SEED", "1"]
    for words in ("SOLVER.BASE_LR SOLVER.MAX_ITER 5", "SOLVER.BASE_LR --resume", "SOLVER.BASE_LR"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--config-file", "c", *words.split()])
        assert "SOLVER.BASE_LR: an override needs a value" in capsys.readouterr().err
    # What is no key is told where keys are checked.
    assert (
        parser.parse_args(["--config-file", "c", "model.weights", "x"]).opts[0] == "model.weights"
    )


def end_of(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A tool's exit code and what it wrote to stderr."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            arguments.run(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    code = ended.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


class BrokenData(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise UserError("3.png: broken")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_mistake_is_one_line(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        list(torch.utils.data.DataLoader(BrokenData(), num_workers=workers))

    assert end_of(main, capsys) == (1, "error: 3.png: broken\n")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (errno.ENOSPC, "error: out/x.pth: the disk is full: make room\n"),
        (errno.EROFS, "error: out/x.pth: the file system is read-only: choose another folder\n"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise OSError(code, os.strerror(code), "out/x.pth")

    assert end_of(main, capsys) == (1, line)


def test_a_bug_keeps_its_traceback() -> None:
    def main() -> None:
        raise RuntimeError("a bug")

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match="a bug"):
            arguments.run(main)
    finally:
        signal.signal(signal.SIGTERM, before)


def stop(cfg: SimpleNamespace, *, resume: bool) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def test_an_interruption_says_what_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = arguments.ConfigParser("A tool.")
    parser.add_training()
    cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path), MODEL=SimpleNamespace(DEVICE="cpu"))

    def end(*options: str) -> tuple[int, str]:
        args = parser.parse_args(["--config-file", "c.yaml", *options])
        return end_of(lambda: arguments.launch(stop, cfg, args), capsys)

    assert end() == (143, "interrupted: no checkpoint was saved\n")
    last = tmp_path / "last_checkpoint"
    last.write_text("model_0000009.pth")
    os.utime(last, (0, 0))  # of an earlier training
    assert end() == (143, "interrupted: no checkpoint was saved\n")
    saved = f"interrupted: {tmp_path}/model_0000009.pth is saved; to go on, add --resume\n"
    assert end("--resume") == (143, saved)


def test_without_detectron2_a_tool_says_how_to_install_it() -> None:
    code = (
        "import runpy, sys; sys.modules['detectron2'] = None\n"
        "sys.argv = ['x', '--config-file', 'c.yaml']\n"
        "runpy.run_path('tools/train_net.py', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: dgnet_det needs Detectron2")
    assert result.stderr.count("\n") == 1


def test_workers_that_end_with_their_process_hide_no_interruption() -> None:
    def lost_worker(*_: object) -> None:
        raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    def main() -> None:
        signal.signal(signal.SIGCHLD, lost_worker)
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGCHLD)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD)}
    try:
        with pytest.raises(SystemExit, match="143"):
            arguments.run(main)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
