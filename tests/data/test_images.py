"""Which files the user's paths stand for."""

from pathlib import Path

import pytest

from dgnet_det.data import find_images
from dgnet_det.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", "clip.mp4", "deeper/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([""], ["a.JPG", "b.png"]),
        (["b.png", "notes.txt"], ["b.png", "notes.txt"]),
        (["*.png"], ["b.png"]),
        (["**/*.png"], ["b.png", "deeper/c.png"]),
        (["?.*", "clip.mp4"], ["a.JPG", "b.png", "clip.mp4"]),
        (["deeper", "b.png"], ["deeper/c.png", "b.png"]),
    ],
)
def test_files_folders_and_patterns(folder: Path, inputs: list[str], expected: list[str]) -> None:
    found = find_images([str(folder / name) for name in inputs])
    assert [str(file.relative_to(folder)) for file in found] == expected


def test_further_suffixes(folder: Path) -> None:
    assert folder / "clip.mp4" not in find_images([str(folder)])
    assert folder / "clip.mp4" in find_images([str(folder)], also={".mp4"})


def test_a_name_that_looks_like_a_pattern(folder: Path) -> None:
    (folder / "a[1].png").touch()
    assert find_images([str(folder / "a[1].png")]) == [folder / "a[1].png"]


def test_nothing_there(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no image in this folder"):
        find_images([str(folder / "empty")])
    with pytest.raises(UserError, match=r"\*\.bmp: no such image or folder"):
        find_images([str(folder / "*.bmp")])
