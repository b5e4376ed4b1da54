"""COCO's JSON format: files, which are read once in a process, and what their entries must hold."""

import json
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
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

IMPORT = "dgnet import converts other formats"
IMPORT_MENDS = "a copy by dgnet import"


class Strict(BaseModel):
    """A part of a COCO JSON file, with the types that JSON has."""

    model_config = ConfigDict(strict=True)


class RunLengths(Strict):
    """A mask in run-length encoding."""

    size: Annotated[list[int], Len(2, 2)]
    counts: list[int] | str


# Each description ends the sentence "KEY VALUE is not …", or "has no KEY: give …".
Id = Annotated[int, Field(description="a whole number, without quotes")]
Pixels = Annotated[FiniteFloat, Gt(0), MultipleOf(1), Field(description="a whole number of pixels")]
Name = Annotated[str, StringConstraints(pattern=r"\S"), Field(description="a text")]
BBox = Annotated[
    list[FiniteFloat],
    Len(4, 4),
    Field(description="[x, y, width, height] of four finite numbers"),
]
Area = Annotated[FiniteFloat, Field(description="a number, which evaluation needs")]
IsCrowd = Annotated[Literal[0, 1], Field(description="0, or 1 for a crowd, as evaluation needs")]
Ignore = Annotated[Literal[0], Field(description="0, as Detectron2 needs: set iscrowd to 1")]
Polygons = list[list[FiniteFloat]]
MASK = "polygons [[x, y, x, y, …], …] or {'size': [height, width], 'counts': …}"
AnyMask = Annotated[Polygons | RunLengths | None, Field(description=f"a mask: {MASK}")]


def _form(required: dict[str, Any], optional: dict[str, tuple[Any, Any]]) -> type[Strict]:
    """A model with required fields, and optional ones with their defaults."""
    fields: dict[str, Any] = optional | {key: (kind, ...) for key, kind in required.items()}
    return create_model("Entry", __base__=Strict, **fields)


IMAGE = _form({"id": Id, "file_name": Name, "width": Pixels, "height": Pixels}, {})
CATEGORY = _form({"id": Id, "name": Name}, {})
SEGMENTED = _form({}, {"segmentation": (AnyMask, None)})


def annotation_form(cfg: CfgNode, evaluated: bool, crowd: bool) -> type[Strict]:
    """The form of an annotation, of a ``crowd`` or of one object, that a config's model needs, and
    evaluation if it is ``evaluated``."""
    needed: dict[str, Any] = {"id": Id, "image_id": Id, "category_id": Id, "bbox": BBox}
    if evaluated:
        needed |= {"area": Area, "iscrowd": IsCrowd}
    if cfg.MODEL.MASK_ON and (evaluated or not crowd):
        words = Field(description=f"a mask, as MODEL.MASK_ON wants: {MASK}")
        needed["segmentation"] = Annotated[Annotated[Polygons, Len(1)] | RunLengths, words]
    if cfg.MODEL.KEYPOINT_ON and not crowd:
        count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        numbers = f"{3 * count} numbers: x, y and visibility of NUM_KEYPOINTS {count} each"
        words = Field(description=numbers)
        points = Annotated[list[FiniteFloat], Len(3 * count, 3 * count), words]
        needed |= {"keypoints": points, "num_keypoints": Id}
    optional = {"segmentation": (AnyMask, None), "area": (Area, 0), "iscrowd": (IsCrowd, 0)}
    return _form(needed, optional | {"ignore": (Ignore, 0)})


def form_problem(model: type[BaseModel], entry: Any) -> tuple[str, str] | None:
    """Find the first field of an entry that is not as ``model`` says, and what is wrong with it."""
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
    """Read a COCO JSON file, which has images, categories and a list of annotations. The content is
    kept until ``forget_files()``, and must not be changed.

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
        if problem := form_problem(CATEGORY, category):
            raise UserError(f"{path}: a category of 'categories': {problem[1]}")
    return [c["name"] for c in sorted(categories, key=lambda c: c["id"])]


def root_categories(
    categories: Sequence[dict[str, Any]], used: Collection[Any]
) -> list[dict[str, Any]]:
    """The categories without objects that stand above the others, as Roboflow writes the project's
    name before the classes. ``used`` has the ids of those with objects."""
    parents = {category.get("supercategory") for category in categories}
    tops = [c for c in categories if c.get("supercategory") in (None, "", "none")]
    return [c for c in tops if c["id"] not in used and c["name"] in parents]


def rotation(annotation: dict[str, Any]) -> float:
    """The degrees by which the box of an annotation is to be turned around its centre, as CVAT and
    Datumaro write them."""
    attributes = annotation.get("attributes")
    for place in (annotation, attributes if isinstance(attributes, dict) else {}):
        with suppress(TypeError, ValueError):
            if degrees := float(place.get("rotation", 0)):
                return degrees
    return 0.0


def lacks_corners(annotation: dict[str, Any]) -> bool:
    """Whether Detectron2 leaves an object out of training, since its polygons have too few corners
    or an odd number of coordinates."""
    mask = annotation.get("segmentation")
    polygons = mask if isinstance(mask, list) else []
    whole = [polygon for polygon in polygons if len(polygon) % 2 == 0 and len(polygon) >= 6]
    return bool(polygons) and not whole


def is_mask(segmentation: Any) -> bool:
    """Whether an annotation's 'segmentation' has an area."""
    entry = {"segmentation": segmentation}
    return bool(segmentation) and not form_problem(SEGMENTED, entry) and not lacks_corners(entry)


# A side in a keypoint's name: left or right, or an L or R where a word begins or ends.
LEFT = re.compile("(?i:left|(?<![a-z])l|l(?![a-z]))|(?<=[a-z])L|l(?=[A-Z])")
ONE_SIDED = re.compile(
    "(?i:left|right|(?<![a-z])[lr](?![a-z]))|(?<![A-Za-z])[LR](?=[A-Z][a-z])|(?<=[a-z])[LR](?![a-z])"
)

ALONE = (
    "keypoints {}: of one side by their names, without a partner on the other: in mirrored images,"
    " half of those of training, they would be on the wrong side; name them left_… and right_…"
)


def keypoint_pairs(names: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Pair the keypoints of left and right, which change places in mirrored images, and find the
    names of one side that have no partner. ``left_eye``, ``Left Eye``, ``EYE_LEFT``, ``LeftEye``,
    ``l_eye``, ``eyeL`` and ``leye`` are all understood."""

    def plain(name: str) -> str:
        return re.sub(r"[\W_]", "", name).lower()

    by_plain = {plain(name): name for name in names}
    pairs = []
    for name in names:
        for side in LEFT.finditer(name):
            right = "right" if len(side[0]) > 1 else "r"
            partner = by_plain.get(plain(name[: side.start()] + right + name[side.end() :]))
            if partner is not None and (name, partner) not in pairs:
                pairs.append((name, partner))
    paired = {name for pair in pairs for name in pair}
    return pairs, [name for name in names if name not in paired and ONE_SIDED.search(name)]
