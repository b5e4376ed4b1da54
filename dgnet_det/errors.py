"""One exception for a user's mistakes, and its one line."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence

MACHINE_ERRORS = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "no permission: choose another folder, or change its permissions",
    errno.EPERM: "no permission: choose another folder, or change its permissions",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another folder",
    errno.EISDIR: "is a folder: name a file",
    errno.EEXIST: "exists already: choose another name",
}


class UserError(ValueError):
    """A mistake that the user can mend: the message names the file or key, what is wrong, and how
    to mend it."""


def user_message(error: BaseException) -> str | None:
    """The one line for a :class:`UserError`, also after a data-loading worker or another process
    has wrapped it in its traceback, and for a file that the machine does not let be written or
    read. None for every other error."""
    if isinstance(error, UserError):
        last_line = str(error).strip().splitlines()[-1]
        return last_line.split(f"{UserError.__name__}: ")[-1]
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        path = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return path + MACHINE_ERRORS[error.errno]
    return None


def one_line_in_training_loop() -> None:
    """Keep Detectron2's training loop from printing the traceback of a :class:`UserError`, or of
    what the trainer makes one of."""
    logger = logging.getLogger("detectron2.engine.train_loop")
    kinds = (UserError, FloatingPointError)
    logger.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], kinds)))


def run_tool(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a tool's ``main(argv)``. A :class:`UserError` becomes one line on stderr and exit code
    1."""
    try:
        main(None)
    except UserError as error:
        print(f"error: {user_message(error)}", file=sys.stderr)
        sys.exit(1)
