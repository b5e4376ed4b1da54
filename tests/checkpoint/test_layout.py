"""Names and shapes in checkpoints, spelled out: they do not change, so that old files load."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.static_networks import Detector, config, saved

from dgnet_det.checkpoint import DGNetCheckpointer

Entry = tuple[str, tuple[int, ...]]

# Expansion, channels, blocks, stride of MobileNetV2's rows, and the stage that each is.
MOBILENETV2 = {
    "res2.0": (1, 16, 1, 1), "res2.1": (6, 24, 2, 2), "res3.0": (6, 32, 3, 2),
    "res4.0": (6, 64, 4, 2), "res4.1": (6, 96, 3, 1), "res5.0": (6, 160, 3, 2),
    "res5.1": (6, 320, 1, 1),
}  # fmt: skip


def norm(name: str, channels: int) -> Iterator[Entry]:
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{tensor}", (channels,)


def conv(name: str, norm_name: str, out: int, into: int, kernel: int) -> Iterator[Entry]:
    yield f"{name}.weight", (out, into, kernel, kernel)
    yield from norm(norm_name, out)


def graph(name: str, num_blocks: int, into: int, out: int, *, fixed: int) -> Iterator[Entry]:
    """What stands beside the blocks; ``fixed`` is 1 where the chain is fixed, else 0."""
    num_nodes = num_blocks + 2
    routed = range(num_nodes - 1 - fixed)
    for i in routed:
        targets = num_nodes - 1 - fixed - i
        yield f"{name}.routers.{i}.linear.weight", (targets, out)
        yield f"{name}.routers.{i}.linear.bias", (targets,)
        if fixed:
            yield f"{name}.gammas.{i}", (targets,)
    yield f"{name}.thresholds", (len(routed),)


def residual_mobilenetv2() -> Iterator[Entry]:
    """Of the demo's checkpoint."""
    yield from conv("stem.conv1", "stem.conv1.norm", 32, 3, 3)
    into = 32
    for name, (expansion, out, num_blocks, stride) in MOBILENETV2.items():
        yield from graph(name, num_blocks, into, out, fixed=1)
        if stride != 1 or into != out:
            yield from conv(f"{name}.projection", f"{name}.projection.norm", out, into, 1)
        for j in range(1, num_blocks + 1):
            block, hidden, k = f"{name}.nodes.{j}.conv", expansion * into, 0
            if expansion != 1:
                yield from conv(f"{block}.0.0", f"{block}.0.1", hidden, into, 1)
                k = 1
            yield from conv(f"{block}.{k}.0", f"{block}.{k}.1", hidden, 1, 3)
            yield from conv(f"{block}.{k + 1}", f"{block}.{k + 2}", out, hidden, 1)
            into = out


def paper_resnet18() -> Iterator[Entry]:
    yield from conv("stem.conv1", "stem.conv1.norm", 64, 3, 7)
    into = 64
    for k, out in enumerate((64, 128, 256, 512), start=2):
        name = f"res{k}.0"
        yield from graph(name, 2, into, out, fixed=0)
        # The stem has no max-pool, so that every stage has a stride, and a projection.
        yield from conv(f"{name}.projection", f"{name}.projection.norm", out, into, 1)
        for j in (1, 2):
            for i in (1, 2):
                layer = f"{name}.nodes.{j}.conv{i}"
                yield from conv(layer, f"{layer}.norm", out, into, 3)
                into = out


@pytest.mark.parametrize(
    ("name", "wiring", "layout"),
    [("MobileNetV2", "residual", residual_mobilenetv2), ("R_18", "paper", paper_resnet18)],
)
def test_names_and_shapes(
    name: str, wiring: str, layout: Callable[[], Iterator[Entry]], tmp_path: Path
) -> None:
    opts = ("MODEL.DGNET.WIRING", wiring, "MODEL.RESNETS.NORM", "FrozenBN")
    detector = Detector(config(name, *opts))
    state = {f"backbone.bottom_up.{key}": torch.randn(shape) for key, shape in layout()}
    own = detector.backbone.bottom_up.state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in own.items()} == dict(layout())
    rest = {key: x for key, x in detector.state_dict().items() if key not in state}
    DGNetCheckpointer(detector).load(saved({"model": state | rest}, tmp_path / "x.pth"))
    for key, tensor in detector.state_dict().items():
        assert torch.equal(tensor, {**state, **rest}[key])
