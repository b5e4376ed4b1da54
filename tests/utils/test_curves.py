"""The picture of a run's curves: what is read, and what is drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgnet_det.utils.curves import draw_curves, read_metrics


def records(name: str, value: float, *iterations: int) -> list[dict]:
    return [{"iteration": i, name: value} for i in iterations]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        # A resumed run replaces what it repeats.
        (
            records("total_loss", 9.0, 19, 39, 59) + records("total_loss", 1.0, 39, 59, 79),
            {"total_loss": ([19, 39, 59, 79], [9, 1, 1, 1])},
        ),
        # A run that began anew replaces a longer one.
        (records("lr", 9.0, 19, 39, 59) + records("lr", 1.0, 19), {"lr": ([19], [1])}),
        # Detectron2 writes an evaluation's line behind that of a later iteration.
        (
            records("lr", 0.0, 19, 39, 59)
            + records("bbox/AP", 1.0, 49)
            + records("lr", 0.0, 79, 99)
            + records("lr", 2.0, 59)
            + records("bbox/AP", 3.0, 49)
            + records("lr", 2.0, 79),
            {"lr": ([19, 39, 59, 79], [0, 0, 2, 2]), "bbox/AP": ([49], [3])},
        ),
        # Undefined metrics are left out.
        (
            [{"iteration": 5, "bbox/AP": float("nan"), "bbox/AP50": 1.5}],
            {"bbox/AP50": ([5], [1.5])},
        ),
    ],
)  # fmt: skip
def test_what_is_read(written: list[dict], expected: dict, tmp_path: Path) -> None:
    """Whose last line may be cut off."""
    path = tmp_path / "metrics.json"
    path.write_text("".join(json.dumps(record) + "\n" for record in written))
    assert read_metrics(path) == expected
    path.write_text(path.read_text() + '{"iteration": 999, "l')
    assert read_metrics(path) == expected


def lines(axes: Axes) -> dict[str, tuple[list, list]]:
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
    }


def panels_of(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(): axes for axes in figure.get_axes()}


PLAIN = {
    "total_loss": ([19, 39], [3.0, 2.0]),
    "loss_cls": ([19, 39], [1.0, 0.5]),
    "lr": ([19, 39], [0.1, 0.01]),
    "data_time": ([19, 39], [7.0, 7.0]),
    "bbox/AP": ([20, 40], [0.0, 12.0]),
    "bbox/AP50": ([40], [30.0]),
    "bbox/APs": ([40], [1.0]),
    "bbox/AP-tree": ([40], [1.0]),
    "segm/AP": ([40], [9.0]),
    "segm_TTA/AP": ([40], [9.5]),
    "mine/val.json/segm/AP": ([40], [8.0]),
}


def test_a_plain_network_has_three_panels() -> None:
    panels = panels_of(draw_curves(PLAIN))
    assert list(panels) == ["loss", "learning rate", "AP, %"]
    assert lines(panels["loss"]) == {
        "total_loss": ([19, 39], [3, 2]),
        "loss_cls": ([19, 39], [1, 0.5]),
    }
    assert list(lines(panels["learning rate"]).values()) == [([19, 39], [0.1, 0.01])]
    assert lines(panels["AP, %"]) == {
        "bbox/AP": ([20, 40], [0, 12]), "bbox/AP50": ([40], [30]), "segm/AP": ([40], [9]),
        "segm_TTA/AP": ([40], [9.5]), "mine/val.json/segm/AP": ([40], [8]),
    }  # fmt: skip


def test_no_point_lies_on_the_frame() -> None:
    for axes in panels_of(draw_curves(PLAIN)).values():
        for line in axes.get_lines():
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            assert left < min(line.get_xdata()) <= max(line.get_xdata()) < right
            assert bottom < min(line.get_ydata()) <= max(line.get_ydata()) < top


def test_a_dg_net_also_shows_its_graphs() -> None:
    curves = {name: curve for name, curve in PLAIN.items() if "AP" not in name}
    for k, graph in enumerate(("res2.0", "res3.0")):
        curves |= {
            f"wiring/{graph}/open_edges": ([19, 39], [1.0, 0.5 + k / 10]),
            f"wiring/{graph}/mean_weight": ([19, 39], [0.5, -0.25]),
            f"wiring/{graph}/absent_nodes": ([19, 39], [0.0, 0.0]),
            f"wiring/{graph}/alpha_std": ([39], [0.02]),
        }
    panels = panels_of(draw_curves(curves))
    assert list(panels) == [
        "loss", "learning rate", "mean weight of an edge", "spread of α over images (std)",
        "share of open edges",
    ]  # fmt: skip
    assert lines(panels["share of open edges"]) == {
        "res2.0": ([19, 39], [1, 0.5]), "res3.0": ([19, 39], [1, 0.6]),
    }  # fmt: skip
    assert len({axes.get_xlim() for axes in panels.values()}) == 1
    # Negative weights are in the panel.
    assert panels["mean weight of an edge"].get_ylim()[0] < -0.25


def test_of_many_graphs_the_mean_the_range_and_the_outermost_are_drawn() -> None:
    curves = {f"wiring/res4.{k}/alpha_std": ([19, 39], [0.1 * k, 0.2 * k]) for k in range(7)}
    (axes,) = draw_curves(curves).get_axes()
    drawn = lines(axes)
    assert drawn.keys() == {"mean", "res4.0", "res4.6"}
    assert np.allclose(drawn["mean"][1], [0.3, 0.6])
    (band,) = axes.collections
    assert np.allclose(band.get_paths()[0].vertices[:, 1].max(), 1.2)
