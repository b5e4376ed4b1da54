"""The processes of a run, and what it leaves in ``OUTPUT_DIR``."""

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
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from dgnet_det.errors import UserError, user_message
from dgnet_det.utils.files import make_folder, written_whole

LOGGERS = ("fvcore", "detectron2", "dgnet_det")


def launch(
    function: Callable[..., None],
    cfg: CfgNode,
    *args: Any,
    processes: int,
    machines: int = 1,
    machine_rank: int = 0,
    url: str = "auto",
) -> None:
    """Detectron2's ``launch`` of ``function(cfg, *args)``, on GPUs, or on the CPU where there are
    none. Its process group is left before the interpreter ends, which would abort.

    Raises:
        UserError: there are fewer GPUs than processes, or GPUs that are not to be used.
    """
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise UserError(f"{processes} processes: this machine has {gpus} GPUs")
    if gpus and processes > 1 and cfg.MODEL.DEVICE == "cpu":
        raise UserError("MODEL.DEVICE cpu: for CPU processes set CUDA_VISIBLE_DEVICES= as well")
    engine.launch(_work, processes, machines, machine_rank, url, args=(function, cfg, *args))


def distribute(model: nn.Module, cfg: CfgNode, **options: Any) -> nn.Module:
    """The model in ``DistributedDataParallel``, with ``options``, if there are several
    processes."""
    # A device id, which Detectron2 gives by default, is not for CPU processes.
    device_ids = None if cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
    return create_ddp_model(model, device_ids=device_ids, **options)


class OutputFolder:
    """``OUTPUT_DIR``, as the context of a run. Nothing is written there before :meth:`open`, so
    that a run that is refused leaves it as it was; what was logged until then goes to ``log.txt``
    as well."""

    def __init__(self, cfg: CfgNode) -> None:
        """Detectron2's ``default_setup`` (seeds, logging to the console), without a file."""
        self.path = Path(cfg.OUTPUT_DIR)
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
        """Begin ``log.txt``, one for each process, and write ``config`` to ``config.yaml``.

        Raises:
            OSError: the folder cannot be made, or written to.
        """
        make_folder(self.path)
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


def _work(function: Callable[..., None], *args: Any) -> None:
    try:
        function(*args)
    except OSError as error:
        message = user_message(error)
        if message is None:
            raise
        raise UserError(message) from error
    # Not after an error, for which the other processes would wait in vain.
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()
