"""Files are read safely, whatever wraps the tensors."""

import argparse
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.static_networks import saved
from safetensors.torch import save_file

from dgnet_det.checkpoint import read_checkpoint
from dgnet_det.errors import UserError

TENSORS = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "bn1.count": torch.tensor(3)}


class Malicious:
    """Touches a file when unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.victim),)


def named(before: str) -> dict[str, torch.Tensor]:
    return {before + name: tensor for name, tensor in TENSORS.items()}


WRAPPED = {
    "bare": TENSORS,
    "model": {"model": TENSORS, "epoch": 3},
    "state_dict": {"state_dict": TENSORS, "arch": "resnet50"},
    "nested": {"model": {"state_dict": TENSORS}, "model_name": "resnet50"},
    "timm": {"state_dict": named("x"), "state_dict_ema": TENSORS, "args": argparse.Namespace(lr=1)},
    "DDP": {"state_dict": named("module.")},
    "compiled": named("_orig_mod.module."),
    "AveragedModel": {"model": {"n_averaged": torch.tensor(9), **named("module.")}},
    "FSDP": {"model": {"conv1.weight": TENSORS["conv1.weight"],
                       "_fsdp_wrapped_module.bn1._orig_mod.count": TENSORS["bn1.count"]}},
}  # fmt: skip


@pytest.mark.parametrize("content", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappings_are_taken_off(content: dict, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    tensors = read_checkpoint(str(path))["model"]
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], x) for name, x in TENSORS.items())


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_file(named("module."), path)
    read = read_checkpoint(str(path))["model"]
    assert read.keys() == TENSORS.keys()
    assert torch.equal(read["conv1.weight"], TENSORS["conv1.weight"])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="truncated, or no checkpoint"):
        read_checkpoint(str(path))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "pytorch_model.bin.index.json"]
)
def test_a_checkpoint_in_several_files_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: one part of a checkpoint.*state_dict"):
        read_checkpoint(name)


def test_what_is_saved_beside_the_model_is_kept(tmp_path: Path) -> None:
    content = {"model": TENSORS, "iteration": 9, "optimizer": {"lr": 0.1}}
    read = read_checkpoint(saved(content, tmp_path / "x.pth"))
    assert read["iteration"] == 9
    assert read["optimizer"] == {"lr": 0.1}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_are_read(protocol: int, tmp_path: Path) -> None:
    arrays = OrderedDict((name, x.numpy()) for name, x in TENSORS.items())
    arrays["scalar"] = np.float32(2.5)
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_checkpoint(str(path))
    assert read["__author__"] == "torchvision"
    assert read["matching_heuristics"] is True
    assert torch.equal(read["model"]["conv1.weight"], TENSORS["conv1.weight"])
    assert read["model"]["scalar"] == 2.5


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("by_torch", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(
    suffix: str, by_torch: bool, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    path = tmp_path / f"x{suffix}"
    content = {"model": {"x": Malicious(victim)}, "__author__": "torchvision"}
    if by_torch:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="could execute code; if you trust it"):
        read_checkpoint(str(path))
    assert not victim.exists()


def test_python_objects_need_trust(tmp_path: Path) -> None:
    content = {"model": TENSORS, "args": SimpleNamespace(lr=0.1)}
    path = saved(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"Python objects.*--trust-pickle"):
        read_checkpoint(path)
    assert read_checkpoint(path, trust_pickle=True)["args"].lr == 0.1


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_other_files_are_no_checkpoints(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save(TENSORS, path)
    whole = pickle.dumps({"conv1_w": np.zeros((8, 8))}) if suffix == ".pkl" else path.read_bytes()
    for content in (b"", b"no checkpoint", b"<html>", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="truncated, or no checkpoint"):
            read_checkpoint(str(path))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"model": {"a": "text"}}])
def test_files_without_tensors_are_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tensors"):
        read_checkpoint(saved(content, tmp_path / "x.pth"))
