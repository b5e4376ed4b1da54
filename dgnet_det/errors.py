"""The exception for a user's mistakes, and the one line that it becomes."""

import errno
import logging
import os
from collections.abc import Collection, Iterable
from typing import Any

MACHINE_ERRORS = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "no permission: choose another folder, or change its permissions",
    errno.EPERM: "no permission: choose another folder, or change its permissions",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another folder",
    errno.EISDIR: "is a folder: name a file",
    errno.EEXIST: "a file stands where a folder is needed: choose another folder",
}


class UserError(ValueError):
    """A mistake that the user can mend. The message names the file or key, what is wrong, and how
    to mend it."""


def user_message(error: BaseException) -> str | None:
    """The one line for a :class:`UserError`, also of a data-loading worker or another process, and
    for errors of the machine such as a full disk. None for every other error."""
    name = f"{UserError.__module__}.{UserError.__name__}: "
    last_line = (str(error).strip().splitlines() or [""])[-1]
    if isinstance(error, UserError) or last_line.startswith(name):
        return last_line.removeprefix(name)
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        path = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return path + MACHINE_ERRORS[error.errno]
    return None


def one_line_in_training_loop() -> None:
    """Keep Detectron2's training loop from printing a traceback where :func:`user_message` has a
    line."""

    def is_other_error(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or user_message(error) is None

    logging.getLogger("detectron2.engine.train_loop").addFilter(is_other_error)


def check_choice(key: str, value: Any, choices: Collection[Any]) -> None:
    """Raise a :class:`UserError` if a config key's value, or one in its list, is not among the
    ``choices``."""
    if not set([value] if isinstance(value, (str, int)) else value) <= set(choices):
        raise UserError(f"{key} {value!r}: choose from {', '.join(map(str, choices))}")


def first_few(names: Iterable[Any], limit: int = 3) -> str:
    """The first few names as text, and how many more there are."""
    names = [str(name) for name in names]
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
