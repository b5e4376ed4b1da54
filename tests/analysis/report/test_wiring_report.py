"""tools/wiring_report.py: its figures against others' and counts by hand, and its page against its
figures."""

import base64
import functools
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.detectors import SMALL, config, route_at_random
from helpers.narrow import NARROW
from PIL import Image
from skimage import data
from torch import nn

from dgnet_cli.wiring_report import main
from dgnet_det.analysis.counts import backbone_counts, structure
from dgnet_det.analysis.report.survey import Survey, distances, summarize
from dgnet_det.config import load_cfg
from dgnet_det.data import read_image
from dgnet_det.errors import UserError
from dgnet_det.export.predictor import load_predictor
from dgnet_det.graph.decisions import Decisions
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dgnet_of, record_decisions
from studies.coco import write_split

NAMES = ["dark <i>", "bright"]
NUM_IMAGES = 12
SMALL_R_18 = [*NARROW, *SMALL, "MODEL.DGNET.FAMILY", "resnet", "MODEL.RESNETS.DEPTH", "18"]
VOID = {"img", "meta"}


class Page(HTMLParser):
    """What is in a page: its elements' attributes, its tables, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += text
        elif "style" not in self.open:
            self.text += text


class Made(NamedTuple):
    """A report, and what it was made of."""

    html: str
    json: dict[str, Any]
    weights: str
    images: Path


def options(weights: str, dataset: Path) -> list[str]:
    images = str(dataset.parent.parent / "val")
    return [
        *SMALL_R_18, "DATALOADER.NUM_WORKERS", "0", "MODEL.ROI_HEADS.NUM_CLASSES", "2",
        "MODEL.WEIGHTS", weights,
        "DATASETS.VAL_JSON", str(dataset), "DATASETS.VAL_IMAGES", images,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The report of a detector whose routers follow the image, on crops of photographs, of two
    classes and several sizes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("report")
    weights = str(folder / "model.pth")
    model = build_model(
        load_cfg(config("faster"), [*SMALL_R_18, "MODEL.ROI_HEADS.NUM_CLASSES", "2"])
    )
    route_at_random(model)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=2)  # type: ignore
    torch.save({"model": model.state_dict(), "class_names": NAMES}, weights)

    rng = np.random.default_rng(0)
    items = []
    for k in range(NUM_IMAGES):
        height, width = (int(side) for side in rng.integers(70, 130, 2))
        photo = (data.rocket(), data.coffee())[k % 2][20 * k :, 30 * k :][:height, :width]
        # The class of the one large box, not of the two small ones.
        large, small = k % 2, 1 - k % 2
        objects = [(large, [5.0, 5, 50, 40]), (small, [1.0, 1, 9, 9]), (small, [2.0, 2, 9, 9])]
        items.append((f"{k}.png", Image.fromarray(photo), objects))
    write_split(folder, "val", NAMES, {}, items)
    dataset = folder / "annotations/val.json"
    arguments = ["--config-file", config("faster"), "--dataset", str(dataset)]
    arguments += ["--confidence", "0.1", "--examples", "3", "--output", str(folder / "r.html")]
    main([*arguments, "--json", str(folder / "r.json"), *options(weights, dataset)])
    page = (folder / "r.html").read_text(encoding="utf-8")
    report = json.loads((folder / "r.json").read_text())
    return Made(page, report, weights, folder / "val")


@pytest.fixture(scope="module")
def wirings(made: Made) -> dict[str, np.ndarray]:
    """The weights and α of every graph on every image, [2, n, N, N], recorded anew."""
    dataset = made.images.parent / "annotations/val.json"
    predictor = load_predictor(load_cfg(config("faster"), options(made.weights, dataset)))
    found: dict[str, list[np.ndarray]] = {}
    with record_decisions(predictor.model) as latest:
        for k in range(NUM_IMAGES):
            predictor(read_image(made.images / f"{k}.png", "BGR"))
            for name, wiring in latest.items():
                pair = torch.cat([wiring.weight, wiring.value]).double().numpy()
                found.setdefault(name, []).append(pair)
    return {name: np.stack(pairs, axis=1) for name, pairs in found.items()}


def test_mean_and_spread_of_every_edge(made: Made, wirings: dict[str, np.ndarray]) -> None:
    edges = made.json["edges"]
    sizes = {name: pairs.shape[2] for name, pairs in wirings.items()}
    assert [(e["graph"], e["from"], e["to"]) for e in edges] == [
        (name, i, j) for name, n in sizes.items() for j in range(2, n) for i in range(j - 1)
    ]
    assert any(e["open"] not in (0, 1) for e in edges)  # edges close in some images
    for edge in edges:
        weight, alpha = wirings[edge["graph"]][:, :, edge["to"], edge["from"]]
        assert edge["mean"] == pytest.approx(weight.mean(), abs=1e-6)
        assert edge["std"] == pytest.approx(weight.std(), abs=1e-6)
        assert edge["min"] == pytest.approx(weight.min(), abs=1e-6)
        assert edge["max"] == pytest.approx(weight.max(), abs=1e-6)
        assert edge["open"] == pytest.approx((alpha != 0).mean())
        assert edge["to_output"] == (edge["to"] == sizes[edge["graph"]] - 1)
    assert made.json["num_edges"] == len(edges)
    assert made.json["edges_that_vary"] == sum(e["max"] - e["min"] > 1e-6 for e in edges)


def test_multiply_adds_of_every_image(made: Made, wirings: dict[str, np.ndarray]) -> None:
    """What an image took less than all edges open would: in the residual wiring one multiply-add
    for each element of each closed edge."""
    images = made.json["images"]
    cfg = load_cfg(config("faster"), [*SMALL_R_18, "MODEL.ROI_HEADS.NUM_CLASSES", "2"])
    backbone = dgnet_of(build_model(cfg).eval())
    all_open = functools.cache(lambda size: backbone_counts(backbone, size).macs)
    for k, image in enumerate(images):
        short, long = sorted((image["height"], image["width"]))
        scale = min(96 / short, 160 / long)
        padded = tuple(
            -(-int(image[side] * scale + 0.5) // 32) * 32 for side in ("height", "width")
        )
        saved = 0
        for graph in structure(backbone, padded):
            height, width = graph["output_size"]
            weight = wirings[graph["name"]][0, k]
            closed = (weight == 0)[np.tril_indices(graph["nodes"], -2)].sum()
            saved += int(closed) * graph["out_channels"] * height * width
        assert image["all_open_macs"] == all_open(padded)
        assert image["all_open_macs"] - image["macs"] == saved > 0
    macs = [image["macs"] for image in images]
    assert made.json["macs"]["mean"] == pytest.approx(np.mean(macs))
    assert made.json["macs"]["std"] == pytest.approx(np.std(macs))
    shares = [image["macs"] / image["all_open_macs"] for image in images]
    assert made.json["share_of_all_open"]["min"] == pytest.approx(min(shares))


def number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def test_the_page_says_what_the_json_says(made: Made) -> None:
    page, report = Page(made.html), made.json
    edges = page.tables[-1]
    assert edges[0] == ["edge", "mean", "std", "min", "max", "open"]
    for row, edge in zip(edges[1:], report["edges"], strict=True):
        to = "out" if edge["to_output"] else edge["to"]
        assert row == [
            f"{edge['graph']}: {edge['from'] or 'in'} → {to}",
            *(number(edge[key]) for key in ("mean", "std", "min", "max")),
            f"{100 * edge['open']:.3g}\u00a0%",
        ]
    interventions = report["interventions"]
    rows = page.tables[0][1:]
    assert [row[1] for row in rows] == [f"{ap:.2f}" for ap in interventions["ap"].values()]
    difference = interventions["own_minus"]["other"]
    assert rows[2][2:4] == [
        number(difference["value"]),
        f"{number(difference['low'])} to {number(difference['high'])}",
    ]
    text = " ".join(page.text.split())
    for part in (
        f"{interventions['ap']['own']:.2f}AP with each image's own edge weights",
        f"{interventions['ap']['other']:.2f}AP with another image's edge weights",
        f"On average {report['macs']['mean'] / 1e9:.3g} ± {report['macs']['std'] / 1e9:.3g} G",
        f"{NUM_IMAGES} images of",
    ):
        assert part in text


def test_the_page_needs_nothing_else(made: Made) -> None:
    page = Page(made.html)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert not re.search(r"url\(|@import|<script|<link|<iframe", made.html)
    # Mean and spread, and three examples.
    assert len(sources) == 4
    for source in sources:
        kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", source).groups()  # type: ignore
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.format == kind.upper()
            assert picture.width > 500
            assert np.asarray(picture).std() > 5
    descriptions = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(descriptions) == 4
    assert all(descriptions)


def make_survey(weight: np.ndarray) -> Survey:
    """Of a graph of two blocks in the paper wiring, six edges."""
    edges = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    image = {"height": 8, "width": 8, "detections": 0, "macs": 90}
    images = [{"file": f"{k}.png", **image, "all_open_macs": 100} for k in range(len(weight))]
    alpha = torch.zeros(len(weight), 4, 4, dtype=torch.float64)
    alpha[:, edges] = torch.tensor(weight)
    return Survey(images, {"res2.0": Decisions(alpha.ne(0), alpha, alpha, edges, (), ())})


def test_a_survey_in_figures_by_hand() -> None:
    weight = np.array([[0.2, 0, 0.5, 0.5, 0.5, 1], [0.4, 0, 0.5, 0.5, 0, 1]])
    report = summarize(make_survey(weight))
    first = report["edges"][0]
    assert (first["from"], first["to"], first["to_output"]) == (0, 1, False)
    assert first["mean"] == pytest.approx(0.3)
    assert first["std"] == pytest.approx(0.1)
    fifth = report["edges"][4]
    assert (fifth["from"], fifth["to"], fifth["to_output"]) == (1, 3, True)
    assert (fifth["open"], fifth["mean"], fifth["std"]) == (0.5, 0.25, 0.25)
    assert report["edges_that_vary"] == 2
    assert report["open_edges"]["mean"] == pytest.approx((5 + 4) / 12)
    assert report["share_of_all_open"] == {"mean": 0.9, "std": 0, "min": 0.9, "max": 0.9}


def test_distance_from_the_mean_wiring_by_hand() -> None:
    # Edge 0 is 1, 1, 4: mean 2, standard deviation √2. Edge 1 is 0, 3, 3: likewise. The rest is
    # constant.
    weight = np.zeros((3, 6))
    weight[:, 0], weight[:, 1] = [1, 1, 4], [0, 3, 3]
    near, far = np.sqrt((1 / 2 + 1 / 2) / 2), np.sqrt((1 / 2 + 4 / 2) / 2)
    np.testing.assert_allclose(distances(weight), [far, near, far])
    assert distances(np.ones((3, 6))).tolist() == [0, 0, 0]


def test_a_folder_of_images(made: Made, tmp_path: Path) -> None:
    output = tmp_path / "r.html"
    arguments = ["--config-file", config("faster"), "--input"]
    arguments += [str(made.images / f"{k}.png") for k in range(3)]
    arguments += ["--output", str(output), "--json", str(tmp_path / "r.json")]
    main([*arguments, "--confidence", "0.1", *SMALL_R_18, "MODEL.WEIGHTS", made.weights])
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["num_images"] == 3
    text = " ".join(Page(output.read_text(encoding="utf-8")).text.split())
    assert "Not tested: AP needs annotations: give --dataset" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_untrained_routers(made: Made, tmp_path: Path) -> None:
    """As built, all weights of the residual wiring are 0."""
    output = tmp_path / "r.html"
    arguments = ["--config-file", config("faster"), "--output", str(output), "--examples", "1"]
    images = [str(made.images / f"{k}.png") for k in range(9)]
    main([*arguments, "--input", *images, *SMALL_R_18])
    text = " ".join(Page(output.read_text(encoding="utf-8")).text.split())
    for part in ("none: untrained", "All images are wired alike: no weight depends on the image."):
        assert part in text


def test_mistakes_leave_nothing(made: Made, tmp_path: Path) -> None:
    output = tmp_path / "r.html"

    def report(*arguments: str) -> None:
        common = ["--config-file", config("faster"), "--output", str(output)]
        common += ["--json", str(tmp_path / "r.json"), *SMALL_R_18, "MODEL.WEIGHTS", made.weights]
        main([*common, *arguments])

    with pytest.raises(UserError, match="--examples 0: give at least 1"):
        report("--dataset", "nowhere", "--examples", "0")
    with pytest.raises(UserError, match="--confidence 7: give a number from 0 to 1"):
        report("--dataset", "nowhere", "--confidence", "7")
    plain = ["MODEL.DGNET.EDGE_WEIGHTS", "none", "MODEL.WEIGHTS", ""]
    with pytest.raises(UserError, match="a plain network has no edge weights"):
        report("--input", str(made.images), *plain)
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(UserError, match=r"broken\.png: the image does not decode"):
        report("--input", str(tmp_path))
    (tmp_path / "broken.png").unlink()
    output.mkdir()
    with pytest.raises(IsADirectoryError, match=r"r\.html"):
        report("--input", str(made.images))
    output.rmdir()
    assert not list(tmp_path.iterdir())
