"""The files of a run in ``OUTPUT_DIR``, and its console."""

import fcntl
import logging
import sys
from logging import FileHandler, Formatter, LogRecord, getLogger
from logging.handlers import MemoryHandler
from pathlib import Path

from detectron2 import engine
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from dgnet_det.errors import UserError
from dgnet_det.utils.files import make_folder, written_whole

LOGGERS = ("fvcore", "detectron2", "dgnet_det")
# Other libraries' loggers that the console shows, beside warnings. log.txt has everything.
SHOWN = (
    "detectron2.engine.train_loop",
    "detectron2.evaluation.evaluator",
    "detectron2.utils.events",
    "fvcore.common.checkpoint",
)
OF_ONE_TRAINING = ("metrics.json", "last_checkpoint", "events.out.tfevents.*")


class OutputFolder:
    """``OUTPUT_DIR``, as the context of a run. Nothing is written before :meth:`open`, so that a
    refused run leaves it alone; earlier log lines go to ``log.txt`` then."""

    def __init__(self, cfg: CfgNode) -> None:
        """Set up seeds and logging by Detectron2's ``default_setup``, without a file."""
        self.path = Path(cfg.OUTPUT_DIR)
        self.log = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
        without_folder = cfg.clone()
        without_folder.defrost()
        without_folder.OUTPUT_DIR = None
        rank = comm.get_rank()
        setup_logger(distributed_rank=rank, name="dgnet_det")
        setup_logger(None, distributed_rank=rank, name="fvcore")  # as default_setup calls it again
        setup_logger(None, distributed_rank=rank)
        for name in LOGGERS:
            getLogger(name).addHandler(self.log)
            for handler in getLogger(name).handlers:
                if getattr(getattr(handler, "stream", None), "name", "") == "<stdout>":
                    handler.addFilter(_is_for_the_console)
        engine.default_setup(without_folder, sys.argv)

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *_: object) -> None:
        for name in LOGGERS:
            getLogger(name).removeHandler(self.log)
        if self.log.target is not None:
            self.log.target.close()

    def open(self, config: CfgNode | None = None, *, anew: bool = False) -> None:
        """Begin ``log.txt``, one for each process.

        Args:
            config: a training's, for ``config.yaml``; None for an evaluation.
            anew: whether the training starts anew. Metrics of an earlier one are set aside then.

        Raises:
            UserError: another training writes there.
            OSError: the folder cannot be made, or written to.
        """
        make_folder(self.path)
        rank = comm.get_rank()
        file = FileHandler(self.path / ("log.txt" + (f".rank{rank}" if rank else "")))
        file.setFormatter(
            Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
        )
        if config is not None:
            _lock(file, self.path)
        self.log.setTarget(file)
        self.log.flush()
        self.log.flushLevel = 0
        if config is not None:
            getLogger(__name__).debug("Config:\n%s", config.dump())
            if comm.is_main_process():
                if anew:
                    self._set_aside()
                with written_whole(self.path / "config.yaml") as temporary:
                    temporary.write_text(config.dump(), encoding="utf-8")

    def _set_aside(self) -> None:
        earlier = [file for pattern in OF_ONE_TRAINING for file in self.path.glob(pattern)]
        if not earlier:
            return
        number = 1 + sum(1 for _ in self.path.glob("earlier_*"))
        folder = self.path / f"earlier_{number}"
        folder.mkdir()
        for file in earlier:
            file.rename(folder / file.name)
        getLogger(__name__).warning(
            "OUTPUT_DIR %s: of an earlier training: its metrics are in %s now", self.path, folder
        )


def _lock(file: FileHandler, folder: Path) -> None:
    """Hold a log file until it is closed or this process ends."""
    try:
        fcntl.lockf(file.stream or -1, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"OUTPUT_DIR {folder}: another training is at work there: choose another"
        ) from error
    except OSError:
        pass  # a file system without locks


def _is_for_the_console(record: LogRecord) -> bool:
    ours = record.levelno >= logging.INFO and record.name.startswith("dgnet_det")
    return ours or record.levelno >= logging.WARNING or record.name in SHOWN
