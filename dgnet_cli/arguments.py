"""What the command lines of all tools share.

A tool parses its arguments before it imports Detectron2 or this package, so that ``--help`` answers
at once. Importing this module silences what other libraries warn of, which no user of a tool can
act on.
"""

import argparse
import importlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

# "MODEL.WEIGHTS", and the keys of Detectron2 that are in no section. A photograph may be called
# DSC_0001.JPG.
KEY = re.compile(
    r"(MODEL|DATASETS|INPUT|DATALOADER|SOLVER|TEST|CLASSIFICATION|GLOBAL)(\.[A-Z0-9_]+)+"
    r"|OUTPUT_DIR|SEED|CUDNN_BENCHMARK|FLOAT32_PRECISION|VIS_PERIOD"
)
FOREIGN_WARNINGS = (
    r".*torch\.jit\.",
    r"torch\.meshgrid",
    r".*broadcast_buffers",
    r"Creating a tensor from a list of numpy",
)
FOREIGN_LOGGERS = (
    "torch.fx._symbolic_trace",
    "torch.utils.cpp_extension",
    "detectron2.data.datasets.coco",  # that it numbers classes from 0
)


def silence_other_libraries() -> None:
    """Hide what torch warns Detectron2 of, in this process."""
    for message in FOREIGN_WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in FOREIGN_LOGGERS:
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)


silence_other_libraries()  # at import, so that processes that this one starts do so as well


class Parser(argparse.ArgumentParser):
    """A parser that keeps the lines of a description and says in one line what is wrong."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            prog=sys.argv[0],
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


class ConfigParser(Parser):
    """A parser with ``--config-file`` and overrides of its keys.

    The parsed arguments have ``config_file`` and ``opts``, a list [KEY, VALUE, KEY, VALUE, ...].
    A key ends an option of several values. What ``--import`` names is imported.
    """

    def __init__(
        self,
        description: str | None,
        *,
        config_help: str = "a YAML file",
        default_config: str | None = None,
        required: bool = True,
    ) -> None:
        """``default_config`` is taken where none is given; without one, a config is ``required``
        or not."""
        super().__init__(description)
        self.add_argument(
            "--config-file",
            required=required and default_config is None,
            default=default_config,
            metavar="FILE",
            help=f"{config_help}; a path, or one of dgnet_det.model_zoo.list()",
        )
        self.add_argument(
            "--import",
            dest="modules",
            action="append",
            default=[],
            metavar="MODULE",
            help="import a module of yours first, which registers datasets, heads or backbones",
        )
        self.add_argument(
            "opts", nargs="*", metavar="KEY VALUE", help="overrides of the config's keys"
        )

    def add_images(self, input_help: str, *, num: int = sys.maxsize, required: bool = True) -> None:
        """Add ``--input``, or instead of it ``--dataset`` and ``--num``, by default ``num`` of its
        images, for :func:`chosen_images`."""
        source = self.add_mutually_exclusive_group(required=required)
        source.add_argument("--input", nargs="+", metavar="PATH", help=input_help)
        source.add_argument("--dataset", metavar="NAME", help="images of a registered dataset")
        default = "all" if num == sys.maxsize else num
        self.add_argument(
            "--num",
            type=int,
            default=num,
            metavar="N",
            help=f"how many of the dataset, spread evenly over it (default: {default})",
        )

    def add_training(self) -> None:
        """The options of a training, on one machine or several."""
        self.add_argument(
            "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR"
        )
        self.add_argument(
            "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, without training"
        )
        self.add_argument("--json", metavar="FILE", help="write the last evaluation's metrics here")
        self.add_argument(
            "--num-gpus",
            type=int,
            metavar="N",
            help="processes of this machine: one per GPU, or on the CPU without one (default: 1);"
            " torchrun and srun start their own",
        )
        self.add_argument("--num-machines", type=int, metavar="N")
        self.add_argument("--machine-rank", type=int, metavar="K", help="this machine's")
        self.add_argument("--dist-url", metavar="URL", help="of the first, tcp://HOST:PORT")
        self.add_argument("--local-rank", help=argparse.SUPPRESS)  # from torch.distributed.launch

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As :meth:`ArgumentParser.parse_known_args`, which ``parse_args`` calls as well."""
        words = iter(sys.argv[1:] if args is None else args)
        rest, overrides = [], []
        for word in words:
            key, equals, value = word.partition("=")  # as LazyConfigs have it
            if KEY.fullmatch(key) and not os.path.exists(word):
                values = [value] if equals else list(islice(words, 1))
                if not values or values[0].startswith("--") or KEY.fullmatch(values[0]):
                    self.error(f"{key}: an override needs a value: give KEY VALUE pairs")
                overrides += [key, *values]
            else:
                rest.append(word)
        parsed, unknown = super().parse_known_args(rest, namespace)
        parsed.opts = [*parsed.opts, *overrides]
        for module in parsed.modules:
            sys.path.insert(0, os.getcwd())
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name != module:
                    raise
                self.error(f"--import {module}: there is no such module on PYTHONPATH or here")
        return parsed, unknown


def chosen_images(
    cfg: Any, args: argparse.Namespace, also: Collection[str] = (), *, evaluated: bool = False
) -> list[dict[str, Any]]:
    """The images of ``--input``, by their ``file_name`` alone, or of ``--dataset``, in Detectron2's
    format; see :meth:`ConfigParser.add_images`. Empty if neither is given.

    Args:
        cfg: the config.
        args: the parsed arguments.
        also: suffixes of further files to take from folders, such as ``.mp4``.
        evaluated: whether AP on the dataset will be asked for.

    Raises:
        UserError: there are none, or the dataset is not sound.
    """
    from dgnet_det.data import check_datasets, find_images, spread_images

    if args.dataset:
        check_datasets(cfg, [args.dataset], evaluated=evaluated)
        return spread_images(args.dataset, args.num)
    return [{"file_name": str(file)} for file in find_images(args.input or (), also)]


def run(main: Callable[[], None]) -> None:
    """Run a tool. What its user or the machine is to blame for becomes one line on stderr and exit
    code 1; Ctrl-C exits with 130, SIGTERM with 143.

    Args:
        main: the tool. The arguments of a ``KeyboardInterrupt`` that it raises are the signal's
            number and what was saved.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch reports workers that end
        for process in multiprocessing.active_children():
            process.terminate()
        number, *saved = error.args or (signal.SIGINT,)
        _exit(": ".join(("interrupted", *saved)), 128 + number)
    except Exception as error:
        if isinstance(error, ImportError) and error.name == "detectron2":
            _exit(f"error: {error}", 1)
        from dgnet_det.errors import user_message

        message = user_message(error)
        if message is None:
            raise
        _exit(f"error: {message}", 1)


def processes(args: argparse.Namespace) -> int:
    """How many processes train, on all machines."""
    from dgnet_det.engine.launch import launched

    other = launched()
    return other.world_size if other else (args.num_gpus or 1) * (args.num_machines or 1)


def launch(work: Callable[..., dict[str, Any]], cfg: Any, args: argparse.Namespace) -> None:
    """Call ``work(cfg, resume=…)`` in the processes that the options of
    :meth:`ConfigParser.add_training`, or another launcher, ask for, and write its results to
    ``--json``. What is interrupted, or loses a process, says which checkpoint is the last."""
    from dgnet_det.engine import launch as engine
    from dgnet_det.errors import UserError

    start = time.time()
    args.resume = args.resume or engine.restarted()
    try:
        engine.launch(
            _work,
            cfg,
            args,
            work,
            processes=args.num_gpus,
            machines=args.num_machines,
            machine_rank=args.machine_rank,
            url=args.dist_url,
            modules=args.modules,
        )
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        if (other := engine.launched()) and other.rank:
            sys.exit(128 + number)  # the first process tells
        raise KeyboardInterrupt(number, _last_checkpoint(cfg, args, start)) from None
    except engine.ProcessLostError as error:
        raise UserError(f"{error}: {_last_checkpoint(cfg, args, start)}") from error


def _work(cfg: Any, args: argparse.Namespace, work: Callable[..., dict[str, Any]]) -> None:
    from detectron2.utils import comm

    from dgnet_det.utils.files import write_json

    results = work(cfg, resume=args.resume)
    if args.json and comm.is_main_process():
        write_json(args.json, results)


def _last_checkpoint(cfg: Any, args: argparse.Namespace, start: float) -> str:
    last = Path(cfg.OUTPUT_DIR, "last_checkpoint")
    # One that was there before counts only for a training that goes on from it.
    if last.exists() and (args.resume or last.stat().st_mtime >= start):
        return f"{last.with_name(last.read_text().strip())} is saved; to go on, add --resume"
    return "no checkpoint was saved"


def _interrupt(number: int, _: Any) -> NoReturn:
    # A signal to the whole process group ends data loading's workers too, which PyTorch reports.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    raise KeyboardInterrupt(number)


def _exit(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
