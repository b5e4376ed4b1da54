"""Descriptions of YOLO datasets: their classes, and the folders and lists of each split."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from dgnet_det.data.formats import read_text
from dgnet_det.data.images import is_image
from dgnet_det.errors import UserError

# Splits as Detectron2 names them, by the names of folders and files.
SPLITS = {name: name for name in ("train", "val", "test")} | {
    "training": "train", "valid": "val", "validation": "val", "testing": "test"
}  # fmt: skip


def is_class_list(path: Path) -> bool:
    """Whether a file is named as lists of YOLO's classes are."""
    return path.name == "classes.txt" or path.suffix == ".names"


def read_description(path: Path) -> dict[str, Any]:
    """The content of ``path`` or, in a folder, of the YAML file that has ``names``, else of
    darknet's ``obj.data``. Empty where there is neither.

    Raises:
        UserError: it is no valid YAML.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in [file for file in files if file.suffix in (".yaml", ".yml")]:
        try:
            data = yaml.safe_load(read_text(file))
        except yaml.YAMLError as error:
            raise UserError(f"{file}: no valid YAML: {' '.join(str(error).split())}") from error
        if isinstance(data, dict) and "names" in data:
            return data
    for file in [file for file in files if file.suffix == ".data"]:
        pairs = (line.split("=", 1) for line in read_text(file).splitlines() if "=" in line)
        data = {key.strip(): value.strip() for key, value in pairs}
        return {key: value for key, value in data.items() if key != "names"}
    return {}


def dataset_folder(path: Path, data: dict[str, Any]) -> Path:
    """The folder of a dataset: ``path``, or the one that its description starts from."""
    if path.is_dir():
        return path
    folder = path.parent / str(data.get("path") or ".")
    return folder if folder.is_dir() else path.parent


def class_names(path: Path, data: dict[str, Any], files: Iterable[Path]) -> list[str]:
    """The names of classes of a data.yaml, else of the list of classes among ``files``, in order.

    Raises:
        UserError: there are none, or they are no texts.
    """
    names = data.get("names")
    for file in [f for f in files if is_class_list(f) and not names]:
        names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if isinstance(names, dict):
        names = [names.get(k, names.get(str(k))) for k in range(len(names))]
    if not names or isinstance(names, str) or any(type(n) not in (str, int) for n in names):
        raise UserError(
            f"{path}: the names of classes are {names!r:.80}: give a data.yaml with a list of texts"
            " ('yes' and 'no' in quotes), or a classes.txt"
        )
    return [str(name) for name in names]


def described_splits(
    folder: Path, data: dict[str, Any]
) -> Iterator[tuple[str, Path | None, set[str]]]:
    """Each folder or list of images that a description names, or that is called after a split: the
    split, where it is, if it is there, and the names in its path that may tell the split."""
    given = {str(key).lower(): value for key, value in data.items() if str(key).lower() in SPLITS}
    if not given:
        lists = (file for file in folder.glob("*.txt") if file.stem.lower() in SPLITS)
        first = {file: read_text(file).split("\n")[0].strip() for file in lists}
        given = {
            file.stem.lower(): file.name for file, line in first.items() if is_image(Path(line))
        }
    for key, value in given.items():
        for entry in _flat(value):
            words = Path(entry.lower().removesuffix(".txt")).parts[-2:]
            place = _locate(folder, str(data.get("path") or ""), entry)
            yield SPLITS[key], place, set(words) - {"images", ".."}


def _flat(value: Any) -> Iterator[str]:
    """The texts of a text, a list, or a list of lists."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    elif value:
        yield str(value)


def _locate(folder: Path, start: str, entry: str) -> Path | None:
    """The folder or list of images that a description names, whose paths often start elsewhere."""
    inside = Path(*[part for part in Path(entry).parts if part not in ("..", "/")])
    for place in (folder / start / entry, folder / entry, folder / inside):
        if place.is_dir() or (place.is_file() and place.suffix == ".txt"):
            return place
    if entry.endswith(".txt"):
        return min(folder.rglob(Path(entry).name), key=lambda f: len(f.parts), default=None)
    return None
