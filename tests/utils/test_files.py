"""Files are whole or not there, and what cannot be written is found first."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dgnet_det.utils.files import (
    files_written_whole,
    folder_written_whole,
    make_folder,
    write_json,
    written_whole,
)


def fail_in(context: AbstractContextManager[Path], name: str, error: Exception) -> None:
    """Write something, then fail."""
    with context as temporary:
        (temporary / name if name else temporary).write_text("half")
        raise error


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    for context, name in (
        (written_whole(tmp_path / "file"), ""),
        (folder_written_whole(tmp_path / "folder"), ""),
        (files_written_whole(tmp_path / "folder"), "a"),
    ):
        with pytest.raises(ZeroDivisionError):
            fail_in(context, name, ZeroDivisionError())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/a").read_text() == "old"


def test_success_replaces_it(tmp_path: Path) -> None:
    with written_whole(tmp_path / "new" / "file") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "new" / "file").exists()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with files_written_whole(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("new")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["a", "old"]
    with folder_written_whole(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "b").write_text("new")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "new"]
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1]})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    null,\n    1\n  ]\n}\n'


def test_what_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file" / "x"):
        with pytest.raises(OSError, match=str(path.parent)), written_whole(path):
            pytest.fail("the body ran")
    # The tests may run as root, who may write everywhere but on a read-only disk.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="folder"), written_whole(tmp_path / "folder" / "x"):
        pytest.fail("the body ran")
    with pytest.raises(PermissionError):
        make_folder(tmp_path)
