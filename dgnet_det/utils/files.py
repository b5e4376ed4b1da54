"""Files that are written whole or not at all."""

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, which is renamed to it if the body succeeds and
    removed if not.

    Raises:
        OSError: nothing can be written there. This is found before the body runs.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """As :func:`written_whole`, for a folder, which replaces the folder ``path``."""
    make_folder(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        fresh = Path(temporary) / "new"
        yield fresh
        if path.exists():
            os.replace(path, Path(temporary) / "old")
        os.replace(fresh, path)


@contextmanager
def files_written_whole(folder: Path) -> Iterator[Path]:
    """As :func:`written_whole`, for files: those in the yielded folder move into ``folder``."""
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new.") as temporary:
        yield Path(temporary)
        for file in Path(temporary).iterdir():
            os.replace(file, folder / file.name)


def check_writable(file: Path) -> None:
    """Check, before long work, that a file can be written; its folder is made.

    Raises:
        OSError: it is a folder, or as :func:`make_folder`.
    """
    make_folder(file.parent)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))


def make_folder(folder: Path) -> None:
    """Make a folder if there is none.

    Raises:
        OSError: there is a file of this name, or nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Write ``data`` as indented JSON. NaN, which JSON does not have, becomes null."""
    with written_whole(path) as temporary:
        temporary.write_text(
            json.dumps(_without_nan(data), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def _without_nan(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and math.isnan(data) else data
