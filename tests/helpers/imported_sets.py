"""Datasets in the formats of labelling tools, and what ``dgnet import`` makes of them."""

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from dgnet_cli import import_dataset

SIZE = (80, 60)
YOLO_YAML = "train: images/train\nval: images/val\n"


def turned_by(tag: int) -> Image.Exif:
    """An EXIF tag that says how to turn an image."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    return exif


def convert(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The COCO JSON of each split, by the tool, which must write nothing else."""
    output = folder.parent / "coco"
    shutil.rmtree(output, ignore_errors=True)
    import_dataset.main([str(folder), str(output), *arguments])
    files = sorted(path for path in output.iterdir() if path.is_file())
    return {path.stem: json.loads(path.read_text()) for path in files}


def boxes_by_file(coco: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """For each image the class names, boxes and crowd flags, in order."""
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found: dict[str, list[tuple[Any, ...]]] = {i["file_name"]: [] for i in coco["images"]}
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    for a in coco["annotations"]:
        assert a["area"] == a["bbox"][2] * a["bbox"][3]
        found[files[a["image_id"]]].append((names[a["category_id"]], a["bbox"], a["iscrowd"]))
    return found


def fill(folder: Path, files: dict[str, Any]) -> Path:
    """Write files, texts, bytes or JSON; those of images, whose content is None, of ``SIZE``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", SIZE, (len(path.name), 50, 90)).save(path)
            continue
        content = json.dumps(content) if isinstance(content, dict) else content
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def convert_file(folder: Path, name: str, content: Any, *arguments: str) -> dict[str, Any]:
    """The COCO JSON of an annotation file beside its image ``a.jpg``."""
    folder = fill(folder / "set", {name: content, "a.jpg": None})
    return convert(folder, *arguments)["train"]


def voc(*objects: tuple[Any, ...], filename: str = "a.jpg", size: tuple[int, int] = SIZE) -> str:
    """XML of objects (name, xmin, ymin, xmax, ymax, difficult)."""
    text = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1, difficult in objects
    )
    return (
        f"<annotation><filename>{filename}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>{text}</annotation>"
    )


def file_names(splits: dict[str, dict[str, Any]]) -> dict[str, set[str]]:
    """The names of the files in each split."""
    return {split: {i["file_name"] for i in coco["images"]} for split, coco in splits.items()}
