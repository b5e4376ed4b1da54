"""The study: its arms, and a run from the command line."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.engine.defaults import seed_all_rng
from torch import nn

from dgnet_det.config import load_cfg
from dgnet_det.data import CheckedDatasetMapper, load_cfg_with_data
from dgnet_det.modeling.backbone.dgnet import WIRINGS
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.observation import dynamic_graphs, record_edge_weights
from studies.experiments import EXPERIMENTS, Run
from studies.run_study import main, perform_all
from studies.wirings import REDUCED


@pytest.fixture(autouse=True)
def reduced_wirings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, graph in REDUCED.items():
        monkeypatch.setitem(WIRINGS, name, graph)


def build(experiment: str, arm: str) -> nn.Module:
    _, config, *overrides = Run(experiment, arm, 0, "tiny").detector()
    return build_model(load_cfg(config, [*overrides, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]))


def alpha_of_noise(model: nn.Module) -> torch.Tensor:
    """α of all routed edges for an image, [K]."""
    with torch.no_grad(), record_edge_weights(model) as weights:
        model.backbone(torch.randn(1, 3, 64, 64))
    return torch.cat([w.alpha[0][w.edges] for w in weights.values()])


def learning(model: nn.Module) -> set[str]:
    """What learns of the graphs beside the blocks."""
    return {
        name.split(".")[0]
        for graph in dynamic_graphs(model).values()
        for name, parameter in graph.named_parameters()
        if parameter.requires_grad
    }


def test_every_arm_builds_and_has_an_opponent() -> None:
    for name, experiment in EXPERIMENTS.items():
        for key, arm in experiment.arms.items():
            assert arm.against in experiment.arms
            model = build(name, key)
            assert bool(dynamic_graphs(model)) == (arm.edge_weights != "none")
            # What is random must not be frozen.
            frozen = [p for p in model.backbone.parameters() if not p.requires_grad]
            if name == "scenes" or "MODEL.WEIGHTS" in arm.others:
                assert not frozen or key == "paper-structure"


def test_structure_alone_is_alpha_1() -> None:
    model = build("scenes", "paper-structure")
    assert alpha_of_noise(model).eq(1).all()
    assert learning(model) == {"nodes", "projection"}


def test_routers_that_stay_at_their_start() -> None:
    assert learning(build("tree_crowns", "untrained-routers")) == {"nodes", "projection", "gammas"}


def test_half_open_and_strided() -> None:
    assert 0.3 < alpha_of_noise(build("scenes", "paper-half-open")).mean() < 0.7
    pooled, strided = (
        dynamic_graphs(build("scenes", arm))["res3.0"] for arm in ("paper-dynamic", "paper-strided")
    )
    strided.load_state_dict(pooled.state_dict())
    x = torch.randn(1, strided.in_channels, 8, 8).relu()
    assert strided._project(x).shape == pooled._project(x).shape
    x[:, :, 1::2] = x[:, :, :, 1::2] = 0  # what the strided one does not see
    before = strided._project(x)
    x[:, :, 1::2] = 1
    assert torch.equal(strided._project(x), before)


def test_all_arms_see_the_same_images(crowns: None) -> None:
    seen = []
    for arm in ("plain", "dynamic", "paper-static"):
        _, config, *overrides = Run("tree_crowns", arm, 5, "tiny").detector()
        cfg = load_cfg_with_data(config, [*overrides, "MODEL.DEVICE", "cpu"])
        # As tools/train_net.py: seed, model, loader.
        seed_all_rng(cfg.SEED)
        build_model(cfg)
        loader = iter(build_detection_train_loader(cfg, mapper=CheckedDatasetMapper(cfg, True)))
        images = [image for _ in range(4) for image in next(loader)]
        seen.append([(image["file_name"], image["image"].sum().item()) for image in images])
    assert seen[0] == seen[1] == seen[2]


def test_from_the_command_line(
    crowns: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    arguments = ["--scale", "tiny", "--seeds", "1", "--experiments", "tree_crowns", "--jobs", "1"]
    main([*arguments, "--arms", "dynamic", "--output", str(output)])
    assert "[1/1] tree_crowns, dynamic, seed 0" in capsys.readouterr().out
    (folder,) = (output / "tree_crowns").iterdir()
    assert {path.name for path in folder.iterdir()} == {"run.json", "log.txt"}
    assert "missing: 0" in (folder / "log.txt").read_text()
    study = json.loads((output / "study.json").read_text())
    (run,) = study["runs"]
    assert 0 <= run["AP"] <= run["AP50"] <= 100
    assert 0 < run["alpha_std"] < run["alpha_std_max"] < 0.5
    assert {"own_minus_mean", "own_minus_other"} <= run.keys()
    assert "figures mean nothing" in (output / "study.md").read_text()

    # Elsewhere, with the page's study.json alone.
    other = ["--output", str(tmp_path / "other"), "--report", str(output)]
    main([*arguments, "--arms", "dynamic", *other])
    assert "1 of 1 runs are finished" in capsys.readouterr().out
    assert json.loads((output / "study.json").read_text())["runs"] == study["runs"]


def test_a_failed_run_is_named(tmp_path: Path) -> None:
    run = Run("tree_crowns", "plain", 0, "no such scale")
    assert perform_all({run: tmp_path / "run"}, jobs=1) == [tmp_path / "run/log.txt"]
    assert "no such scale" in (tmp_path / "run/log.txt").read_text()
