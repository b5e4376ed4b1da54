"""The sweep over thresholds on a small dataset, against counts by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import small_predictor
from matplotlib.figure import Figure
from PIL import Image
from sweep_thresholds import main

from dgnet_det.analysis.sweep import (
    Point,
    draw_sweeps,
    latencies_of,
    sweep,
    thresholds_for,
)
from dgnet_det.errors import UserError
from dgnet_det.modeling.observation import dynamic_graphs, record_edge_weights
from studies.coco import write_split

NARROW = [
    "MODEL.DGNET.FAMILY", "resnet", "MODEL.DGNET.WIRING", "paper", "MODEL.RESNETS.DEPTH", "18",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three noise images of 96 x 96 pixels with a box each, as overrides of a config."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    items = []
    for i in range(3):
        pixels = rng.integers(0, 256 >> i, (96, 96, 3), dtype=np.uint8)
        items.append((f"{i}.png", Image.fromarray(pixels), [(0, [9.0, 9, 50, 40])]))
    write_split(folder, "val", ["box"], {}, items)
    return [
        *("DATASETS.VAL_JSON", str(folder / "annotations/val.json")),
        *("DATASETS.VAL_IMAGES", str(folder / "val"), "DATALOADER.NUM_WORKERS", "0"),
    ]


def test_sweep_by_hand(dataset: list[str]) -> None:
    predictor = small_predictor("faster", *dataset, *NARROW)
    model = predictor.model
    for graph in dynamic_graphs(model).values():
        # One node's threshold was learned higher than most of the sweep's.
        graph.thresholds.data = torch.tensor([-1.0, -1.0, 0.9])
    thresholds = thresholds_for((0, 0.5, 1), model, predictor.cfg)
    assert [thresholds[0], thresholds[2]] == [0, 1]
    points = sweep(model, predictor.cfg, thresholds, repeats=1)
    assert torch.equal(graph.thresholds, torch.tensor([-1.0, -1.0, 0.9]))

    # The middle threshold halves the open edges' α over all images.
    alphas = []
    for k in range(3):
        pixels = np.array(Image.open(Path(dataset[3]) / f"{k}.png"))
        image = torch.tensor(pixels.transpose(2, 0, 1).copy())
        with torch.no_grad(), record_edge_weights(model) as wirings:
            model([{"image": image}])
        alphas += [alpha for w in wirings.values() for alpha in w.alpha[0, w.edges].tolist()]
    opened = [alpha for alpha in alphas if alpha > 0]
    assert thresholds[1] == pytest.approx(float(np.median(opened)))
    assert points[0].open_edges == pytest.approx(len(opened) / len(alphas))

    # With all edges closed the output keeps its strongest: of 6 edges one, from the input.
    last = points[2]
    assert (last.open_edges, last.absent_nodes) == (pytest.approx(1 / 6), 1)
    macs = 7 * 7 * 3 * 8 * 48**2  # the stem
    for channels, out_channels, side in ((8, 8, 24), (8, 16, 12), (16, 32, 6), (32, 64, 3)):
        projection = channels * out_channels * side**2
        router = out_channels * side**2 + 3 * out_channels
        macs += projection + router + out_channels * side**2
    assert last.macs == macs
    assert points[0].macs > points[1].macs > points[2].macs
    assert all(0 < p.backbone["median"] < p.detector["median"] for p in points)
    for latency in (point.backbone for point in points):
        assert latency["min"] <= latency["median"] <= latency["max"]
    assert all(0 <= p.ap <= p.ap50 <= 100 for p in points)


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of tools/sweep_thresholds.py."""
    files = ["--output", str(tmp_path / "sweep.png"), "--json", str(tmp_path / "out.json")]
    main([*files, "--repeats", "1", *arguments])
    return json.loads((tmp_path / "out.json").read_text())


@pytest.fixture
def detector(tmp_path: Path, dataset: list[str]) -> list[str]:
    """The config and the checkpoint of a small detector, as arguments."""
    predictor = small_predictor("faster", *dataset)
    torch.save({"model": predictor.model.state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(predictor.cfg.dump())
    return [str(tmp_path / "config.yaml"), str(tmp_path / "model.pth")]


def test_the_tool(tmp_path: Path, detector: list[str]) -> None:
    config, weights = detector
    report = run(
        tmp_path, "--name", "one", "--compare", "another", config, weights, "--thresholds", "0",
        "0.9", "--config-file", config, "MODEL.WEIGHTS", weights,
    )  # fmt: skip
    assert list(report["detectors"]) == ["one", "another"]
    one, another = (d["points"] for d in report["detectors"].values())
    for a, b in zip(one, another, strict=True):
        same = {"threshold", "ap", "ap50", "open_edges", "absent_nodes", "macs"}
        assert {key: a[key] for key in same} == {key: b[key] for key in same}
    assert [p["threshold"] for p in one] == [0, 0.9]
    assert one[0]["macs"] > one[1]["macs"]
    assert {"CPU", "threads", "PyTorch", "date"} <= report["environment"].keys()
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 500


def test_latencies_are_those_of_pairs() -> None:
    # The machine is twice as slow at the second image, and for all thresholds in the last repeat.
    seconds = np.array([[[4, 2], [4, 3], [8, 4]], [[8, 4], [8, 6], [16, 8]]], dtype=float)
    first, second = latencies_of(seconds)
    assert first == {"median": 8, "min": 8, "max": 8}
    assert second == {"median": 4, "min": 4, "max": 6}


def test_a_line_for_each_detector() -> None:
    def points(ap: float) -> list[Point]:
        latency = {"median": 0.01, "min": 0.009, "max": 0.012}
        return [
            Point(t, ap * (1 - t), 2 * ap, 1 - t, t, 1e6, latency, latency) for t in (0.0, 0.5, 1.0)
        ]

    figure = draw_sweeps({"one": points(30.0), "another": points(20.0)}, "data/val.json")
    assert isinstance(figure, Figure)
    left, right = figure.axes
    for axes in (left, right):
        assert [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 3] == [
            [30, 15, 0], [20, 10, 0],
        ]  # fmt: skip
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["one", "another"]
    assert left.get_ylabel() == "box AP on val.json, %"


def test_errors(tmp_path: Path, detector: list[str]) -> None:
    config, weights = detector

    def fails(message: str, *arguments: str) -> None:
        with pytest.raises(UserError, match=message):
            run(tmp_path, *arguments)
        assert not (tmp_path / "sweep.png").exists()

    with_weights = ["--config-file", config, "MODEL.WEIGHTS", weights]
    fails("MODEL.WEIGHTS: empty", "--config-file", config)
    fails("--repeats 0", "--repeats", "0", *with_weights)
    fails("each its own name", "--compare", "detector", config, weights, *with_weights)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.png"):
        run(tmp_path, *with_weights, "--output", str(tmp_path / "folder.png"))
    none = ["DATASETS.VAL_JSON", "", "DATASETS.VAL_IMAGES", "", "DATASETS.TEST", "()"]
    fails("name one dataset", *with_weights, *none)
    static = {k: v for k, v in torch.load(weights, weights_only=True)["model"].items()
              if ".nodes." in k or not k.startswith("backbone.bottom_up.res")}  # fmt: skip
    torch.save({"model": static}, tmp_path / "static.pth")
    fails(
        "the plain network has no edges", *with_weights, "MODEL.DGNET.EDGE_WEIGHTS", "none",
        "MODEL.WEIGHTS", str(tmp_path / "static.pth"),
    )  # fmt: skip
