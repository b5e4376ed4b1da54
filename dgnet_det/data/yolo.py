"""What describes a YOLO dataset: its classes, and which images are in which split."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """What describes a dataset: ``path``, or in it the YAML file that has ``names``, or darknet's
    ``obj.data``. Empty where there is neither.

    Raises:
        UserError: it is no valid YAML.
    """
    for file in sorted(path.glob("*.y*ml")) if path.is_dir() else [path] * (".y" in path.suffix):
        try:
            data = yaml.safe_load(read_text(file))
        except yaml.YAMLError as error:
            raise UserError(f"{file}: no valid YAML: {' '.join(str(error).split())}") from error
        if isinstance(data, dict) and "names" in data:
            return data
    for file in sorted(path.glob("*.data")) if path.is_dir() else [path] * (path.suffix == ".data"):
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


class YoloSplits:
    """The splits of a dataset's images, by its description, which names folders, or lists of
    images. A folder or a name in its path that is given to several splits tells nothing.

    Attributes:
        lists: the files that list images.
        missing: listed images that are not there, and the list of each.
    """

    def __init__(
        self,
        folder: Path,
        data: dict[str, Any],
        images: Sequence[Path],
        find: Callable[[Sequence[str], Path], Path],
    ) -> None:
        """``find`` gives an image by its names in a file, or raises :class:`UserError`."""
        given = {k: v for k, v in data.items() if str(k).lower() in SPLITS}
        if not given:
            given = {f.stem: f.name for f in folder.glob("*.txt") if _lists_images(f)}
        self.lists: list[Path] = []
        self.missing: list[tuple[str, Path]] = []
        self._listed = defaultdict[Path, set[str]](set)
        folders, words = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        for key, value in given.items():
            split = SPLITS[str(key).lower()]
            for entry in _flat(value):
                place = _locate(folder, str(data.get("path") or ""), entry)
                if place is None or place.is_dir():
                    for part in Path(entry.lower().removesuffix(".txt")).parts[-2:]:
                        words[part].add(split)
                    if place is not None:
                        folders[os.path.abspath(place)].add(split)
                    continue
                self.lists.append(place)
                for line in filter(None, map(str.strip, read_text(place).splitlines())):
                    try:
                        self._listed[find([line], place)].add(split)
                    except UserError:
                        self.missing.append((line, place))
        for image in images:
            above = [folder for folder in map(str, Path(os.path.abspath(image)).parents)]
            nearest = next((folders[f] for f in above if f in folders), set())
            if len(nearest) == 1:
                self._listed[image] |= nearest
        # Names of folders that tell a split, beside those that every dataset has.
        self.words = {
            name: next(iter(splits))
            for name, splits in words.items()
            if len(splits) == 1 and name not in ("images", "..")
        }

    def of(self, image: Path) -> list[str] | None:
        """The splits of an image; none where lists leave it out; None where nothing tells."""
        if image in self._listed or self.lists:
            return sorted(self._listed.get(image, ()))
        return None


def _flat(value: Any) -> Iterator[str]:
    """The texts of a text, a list, or a list of lists."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    elif value:
        yield str(value)


def _lists_images(file: Path) -> bool:
    """Whether a file called after a split has names of images in its lines."""
    if file.stem.lower() not in SPLITS:
        return False
    lines = read_text(file).split("\n")
    return is_image(Path(lines[0].strip()))


def _locate(folder: Path, start: str, entry: str) -> Path | None:
    """The folder or list of images that a description names, whose paths often start elsewhere."""
    inside = Path(*[part for part in Path(entry).parts if part not in ("..", "/")])
    for place in (folder / start / entry, folder / entry, folder / inside):
        if place.is_dir() or (place.is_file() and place.suffix == ".txt"):
            return place
    if entry.endswith(".txt"):
        return min(folder.rglob(Path(entry).name), key=lambda f: len(f.parts), default=None)
    return None
