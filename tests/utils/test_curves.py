"""The picture of a run's curves: what is read, and what is drawn."""

import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgnet_det.utils.curves import draw_curves, read_metrics


def written(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    first = [{"iteration": i, "total_loss": 9.0} for i in (19, 39, 59)]
    resumed = [{"iteration": i, "total_loss": 1.0, "bbox/AP": 5.0} for i in (39, 59, 79)]
    curves = read_metrics(written(tmp_path / "metrics.json", first + resumed))
    assert curves == {
        "total_loss": ([19, 39, 59, 79], [9.0, 1.0, 1.0, 1.0]),
        "bbox/AP": ([39, 59, 79], [5.0, 5.0, 5.0]),
    }


def test_a_run_that_began_anew_replaces_a_longer_one(tmp_path: Path) -> None:
    records = [{"iteration": i, "lr": 9.0} for i in (19, 39, 59)] + [{"iteration": 19, "lr": 1.0}]
    assert read_metrics(written(tmp_path / "metrics.json", records)) == {"lr": ([19], [1.0])}


def test_late_evaluations_and_a_cut_line(tmp_path: Path) -> None:
    """Detectron2 writes an evaluation's line behind that of a later iteration."""
    lines = [(19, "lr"), (39, "lr"), (59, "lr"), (49, "bbox/AP"), (79, "lr"), (99, "lr")]
    lines += [(59, "lr"), (49, "bbox/AP"), (79, "lr")]  # resumed from 50
    records = [{"iteration": i, name: float(k)} for k, (i, name) in enumerate(lines)]
    path = written(tmp_path / "metrics.json", records)
    path.write_text(path.read_text() + '{"iteration": 99, "l')
    assert read_metrics(path) == {
        "lr": ([19, 39, 59, 79], [0, 1, 6, 8]),
        "bbox/AP": ([49], [7]),
    }


def test_undefined_metrics_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 5, "bbox/AP": NaN, "bbox/AP50": 1.5}\n')
    assert read_metrics(path) == {"bbox/AP50": ([5], [1.5])}


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
