"""The processes of a run, and what it leaves in ``OUTPUT_DIR``."""

import os
import sys
from collections.abc import Callable
from logging import FileHandler, Formatter, getLogger
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2 import engine
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from dgnet_det.errors import UserError, user_message
from dgnet_det.utils.files import written_whole

LOGGERS = ("fvcore", "detectron2", "dgnet_det")


def launch(
    function: Callable[..., None],
    processes: int,
    *,
    device: str,
    machines: int = 1,
    machine_rank: int = 0,
    url: str = "auto",
    args: tuple[Any, ...] = (),
) -> None:
    """Detectron2's ``launch``, whose process group is left before the interpreter ends, which
    would abort.

    Args:
        function: what each process calls.
        processes: of this machine.
        device: ``MODEL.DEVICE``.
        machines, machine_rank: how many machines, and which of them this one is.
        url: of the first machine, as ``tcp://HOST:PORT``; "auto" for a free port of this one.
        args: of ``function``.

    Raises:
        UserError: there are fewer GPUs than processes, or GPUs that are not to be used.
    """
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise UserError(f"{processes} processes: this machine has {gpus} GPUs")
    if gpus and processes > 1 and device == "cpu":
        raise UserError("MODEL.DEVICE cpu: for CPU processes set CUDA_VISIBLE_DEVICES= as well")
    engine.launch(
        _work,
        processes,
        num_machines=machines,
        machine_rank=machine_rank,
        dist_url=url,
        args=(function, args),
    )


def join_processes(cfg: CfgNode) -> torch.device:
    """Join the other processes that torchrun started, if any; this process's device.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if cfg.MODEL.DEVICE == "cpu" or not torch.cuda.is_available():
        device = torch.device("cpu")
    else:
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(f"more processes than GPUs: this machine has {gpus}")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave_processes() -> None:
    """Wait for the other processes and end their group, if there is one. Not for after an error,
    which the others would wait for in vain."""
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()


class OutputFolder:
    """``OUTPUT_DIR``, as the context of a run. Nothing is written there before :meth:`open`, so
    that a run that is refused leaves it as it was; what was logged until then goes to ``log.txt``
    as well."""

    def __init__(self, cfg: CfgNode) -> None:
        """Detectron2's ``default_setup`` (seeds, logging to the console), without a file.

        Raises:
            UserError: ``OUTPUT_DIR`` is not a folder, or cannot be written to.
        """
        self.path = Path(cfg.OUTPUT_DIR)
        above = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not above.is_dir():
            raise UserError(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {above} is a file: name a folder")
        if not os.access(above, os.W_OK):
            raise UserError(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {above} cannot be written to")
        self.log = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
        without_folder = cfg.clone()
        without_folder.defrost()
        without_folder.OUTPUT_DIR = None
        for name in LOGGERS:
            getLogger(name).addHandler(self.log)
        setup_logger(distributed_rank=comm.get_rank(), name="dgnet_det")
        engine.default_setup(without_folder, sys.argv)  # the others' loggers, and the seed

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *_: object) -> None:
        for name in LOGGERS:
            getLogger(name).removeHandler(self.log)
        if self.log.target is not None:
            self.log.target.close()

    def open(self, config: CfgNode | None = None) -> None:
        """Begin ``log.txt``, one for each process, and write ``config`` to ``config.yaml``."""
        self.path.mkdir(parents=True, exist_ok=True)
        rank = comm.get_rank()
        file = FileHandler(self.path / ("log.txt" + (f".rank{rank}" if rank else "")))
        file.setFormatter(
            Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
        )
        self.log.setTarget(file)
        self.log.flush()
        self.log.flushLevel = 0
        if config is not None:
            getLogger(__name__).info("Config:\n%s", config.dump())
            if comm.is_main_process():
                with written_whole(self.path / "config.yaml") as temporary:
                    temporary.write_text(config.dump(), encoding="utf-8")


def _work(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        function(*args)
    except (OSError, RuntimeError) as error:
        message = user_message(error)
        if message is None:
            raise
        raise UserError(message) from error
    leave_processes()
