"""COCO's JSON format: reading a file, once in a process, and the form of its entries."""

import json
import os
from functools import lru_cache
from typing import Annotated, Any, Literal

from annotated_types import Gt, Len, MultipleOf
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationError,
    create_model,
)

from dgnet_det.errors import UserError

IMPORT = "tools/import_dataset.py converts other formats"


class Entry(BaseModel):
    """An entry of one of the file's lists: of 'images', 'categories' or 'annotations'."""

    model_config = ConfigDict(strict=True)


class Runs(Entry):
    """A mask in run-length encoding."""

    size: Annotated[list[int], Len(2, 2)]
    counts: list[int] | str


# The description of a form is what a value that is not of it is told not to be.
Id = Annotated[int, Field(description="a whole number, without quotes")]
Pixels = Annotated[FiniteFloat, Gt(0), MultipleOf(1), Field(description="a whole number of pixels")]
Name = Annotated[str, StringConstraints(pattern=r"\S"), Field(description="a text")]
Box = Annotated[
    list[FiniteFloat],
    Len(4, 4),
    Field(description="[x, y, width, height] of four finite numbers"),
]
Area = Annotated[FiniteFloat, Field(description="a number, which evaluation needs")]
IsCrowd = Annotated[Literal[0, 1], Field(description="0, or 1 for a crowd, as evaluation needs")]
Ignore = Annotated[Literal[0], Field(description="0, as Detectron2 needs: set iscrowd to 1")]
Polygons = list[list[FiniteFloat]]
MASK = "polygons [[x, y, x, y, …], …] or {'size': [height, width], 'counts': …}"


class Image(Entry):
    id: Id
    file_name: Name
    width: Pixels
    height: Pixels


class Category(Entry):
    id: Id
    name: Name


class Annotation(Entry):
    id: Id
    image_id: Id
    category_id: Id
    bbox: Box
    area: Area = 0
    iscrowd: IsCrowd = 0
    ignore: Ignore = 0
    segmentation: Annotated[Polygons | Runs | None, Field(description=f"a mask: {MASK}")] = None


def annotation_model(cfg: CfgNode, evaluated: bool, crowd: bool) -> type[Annotation]:
    """The form of a crowd's or another's annotation that a config's model and evaluation need."""
    needed: dict[str, Any] = {"area": Area, "iscrowd": IsCrowd} if evaluated else {}
    if cfg.MODEL.MASK_ON and (evaluated or not crowd):
        words = Field(description=f"a mask, as MODEL.MASK_ON wants: {MASK}")
        needed["segmentation"] = Annotated[Annotated[Polygons, Len(1)] | Runs, words]
    if cfg.MODEL.KEYPOINT_ON and not crowd:
        count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        numbers = f"{3 * count} numbers: x, y and visibility of NUM_KEYPOINTS {count} each"
        words = Field(description=numbers)
        form = Annotated[list[FiniteFloat], Len(3 * count, 3 * count), words]
        needed |= {"keypoints": form, "num_keypoints": Id}
    fields: dict[str, Any] = {name: (form, ...) for name, form in needed.items()}
    return create_model("NeededAnnotation", __base__=Annotation, **fields)


def form_problem(model: type[BaseModel], entry: Any) -> tuple[str, str] | None:
    """The field of an entry that is not of its form, and what is wrong with it."""
    try:
        model.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            return "form", f"{entry!r:.60} is no object"
        key = str(first["loc"][0])
        form = model.model_fields[key].description
        if first["type"] == "missing" and len(first["loc"]) == 1:
            return key, f"has no {key!r}: give {form}"
        return key, f"{key} {entry[key]!r:.60} is not {form}"
    return None


@lru_cache(maxsize=2)
def _parse(path: str, changed: int) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


# Frees what read_coco keeps: of COCO's training set, two gigabytes.
forget_files = _parse.cache_clear


def read_coco(path: str) -> dict[str, Any]:
    """The content of a COCO JSON file, which has images, categories and a list of annotations. It
    is kept, and must not be changed, until ``forget_files()``.

    Raises:
        UserError: the file is not there, is no JSON, or is not in COCO format.
    """
    local = PathManager.get_local_path(path)
    try:
        coco = _parse(local, os.stat(local).st_mtime_ns)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such annotation file") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "BOM" in reason:  # which pycocotools does not read either
            raise UserError(f"{path}: starts with a byte-order mark: save it without") from error
        raise UserError(f"{path}: no valid JSON: {reason}: {IMPORT}") from error
    if isinstance(coco, list) and coco and isinstance(coco[0], dict) and "score" in coco[0]:
        raise UserError(f"{path}: holds detections, with scores: give the file of their images")
    lists = coco if isinstance(coco, dict) else {}
    for key in ("images", "categories"):
        if not isinstance(lists.get(key), list) or not lists[key]:
            raise UserError(
                f"{path}: not in COCO format: no list {key!r}, or an empty one: {IMPORT}"
            )
    if not isinstance(lists.setdefault("annotations", []), list):
        raise UserError(f"{path}: not in COCO format: 'annotations' is no list")
    return lists


def category_names(path: str) -> list[str]:
    """The names of a file's categories in the order of their ids, as a model's outputs.

    Raises:
        UserError: as :func:`read_coco`, or a category has no number or no name.
    """
    categories = read_coco(path)["categories"]
    for category in categories:
        if problem := form_problem(Category, category):
            raise UserError(f"{path}: a category of 'categories': {problem[1]}")
    return [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
