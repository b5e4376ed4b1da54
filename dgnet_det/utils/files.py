"""Files that are written whole or not at all."""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dgnet_det.errors import UserError


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it if the body succeeds and removed if not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A name for a new folder, which takes the place of the folder ``path`` if the body succeeds
    and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        fresh = Path(temporary) / "new"
        yield fresh
        if path.exists():
            os.replace(path, Path(temporary) / "old")
        os.replace(fresh, path)


@contextmanager
def files_written_whole(folder: Path) -> Iterator[Path]:
    """A new folder, whose files move into ``folder`` if the body succeeds and are removed if
    not.

    Raises:
        UserError: ``folder`` is a file.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file: name a folder to write to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        yield Path(temporary)
        folder.mkdir(exist_ok=True)
        for file in Path(temporary).iterdir():
            os.replace(file, folder / file.name)


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
