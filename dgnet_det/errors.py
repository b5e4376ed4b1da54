"""One exception for a user's mistakes, and how a tool reports it."""

import logging
import sys
from collections.abc import Callable, Sequence


class UserError(ValueError):
    """A mistake that the user can mend: the message names the file or key, what is wrong, and how
    to mend it."""


def user_message(error: BaseException) -> str:
    """The one line of a :class:`UserError`, also after a data-loading worker has wrapped it in its
    traceback."""
    last_line = str(error).strip().splitlines()[-1]
    return last_line.split(f"{UserError.__name__}: ")[-1]


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
