"""Reading checkpoint files without executing what is pickled in them."""

import _codecs
import argparse
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.utils.file_io import PathManager
from torch import Tensor

from dgnet_det.errors import UserError

# Keys under which training scripts keep the state dict, the averaged weights before the others, as
# timm prefers them. One can be inside another.
WRAPPERS = (
    "model", "state_dict_ema", "model_ema", "state_dict", "model_state", "model_state_dict",
)  # fmt: skip
# What DistributedDataParallel and AveragedModel put before all names, and torch.compile, FSDP and
# activation checkpointing anywhere.
OUTER = "module."
AVERAGED = "n_averaged"  # AveragedModel's counter
INNER = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
SHARDED = re.compile(r"-\d{5}-of-\d{5}\.|\.index\.json$")
# First bytes of a file of torch.save from before it wrote zip archives.
LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# The author that Detectron2 gives to a pickle in Caffe2's format. Detectron2 would rename its
# tensors once more under this name, so it gets another one here.
CAFFE2 = "Caffe2"
RENAMED_CAFFE2 = "Caffe2, renamed"
FROZEN_NORM_EPS = 1e-5  # of Detectron2's FrozenBatchNorm2d

# All that a pickle of numpy arrays in plain containers refers to.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _codecs.encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1, numpy 2
    _ADMITTED |= {
        (f"{_core}.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
        (f"{_core}.multiarray", "scalar"): np.float32(0).__reduce__()[0],
        (f"{_core}.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    }
# What timm's training script saves its options in.
torch.serialization.add_safe_globals([argparse.Namespace])


class _RefusedError(Exception):
    """A reference in a pickle to something else than arrays and plain containers."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _RefusedError(f"{module}.{name}")
        return _ADMITTED[module, name]


def local_file(path: str) -> str:
    """The local file of a path or URL that Detectron2 knows, downloaded where it is remote.

    Raises:
        UserError: there is no such file, or it cannot be fetched.
    """
    try:
        local = PathManager.get_local_path(urlparse(path)._replace(query="").geturl())
    except (OSError, HTTPException, LookupError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be fetched ({reason}); give a local file") from error
    if not Path(local).is_file():
        raise UserError(f"{path}: no such checkpoint file")
    return local


def read_checkpoint(path: str, *, trust_pickle: bool = False) -> dict[str, Any]:
    """Read a local file of ``torch.save``, of safetensors, or of Detectron2's and Caffe2's pickled
    numpy arrays; with ``trust_pickle``, by Python's full unpickler, which executes what is in it.

    Returns:
        The content in Detectron2's form: ``model`` maps names to tensors on the CPU, without the
        prefixes of wrappers such as DistributedDataParallel, and with Detectron2's names instead of
        Caffe2's. What was saved beside ``model`` is beside it.

    Raises:
        UserError: the file is truncated, one part of a checkpoint, or none, or is to be trusted.
    """
    if SHARDED.search(Path(path).name):
        raise UserError(
            f"{path}: one part of a checkpoint in several files: load the model in its own library"
            " and save it in one, by torch.save(model.state_dict(), FILE)"
        )
    reader = _safetensors if path.endswith(".safetensors") else _unpickle
    content: Any = reader(path, trust_pickle)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    state = content
    while wrapped := [state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)]:
        state = wrapped[0]
    if state is content and path.endswith(".pkl"):
        blobs = content.get("blobs", content)
        state = {name: x for name, x in blobs.items() if not str(name).endswith("_momentum")}
        content = {"__author__": CAFFE2, "matching_heuristics": True}
    is_detectron2s = isinstance(content.get("model"), Mapping) or "__author__" in content
    content = {**(content if is_detectron2s else {}), "model": _tensors(path, state)}
    if content.get("__author__") == CAFFE2:
        content |= {"model": _renamed_caffe2(content["model"]), "__author__": RENAMED_CAFFE2}
    return content


def _renamed_caffe2(blobs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give Caffe2's tensors Detectron2's names, and norms whose running statistics were folded into
    their affine parameters statistics that change nothing."""
    tensors = convert_c2_detectron_names(blobs)[0]
    is_folded = any("_bn_" in name for name in blobs)
    if is_folded and not any(re.search("_bn_(rm|running_mean)$", name) for name in blobs):
        for name in [name for name in tensors if name.endswith("norm.weight")]:
            norm, ones = name.removesuffix("weight"), torch.ones_like(tensors[name])
            tensors[f"{norm}running_mean"] = 0 * ones
            tensors[f"{norm}running_var"] = ones - FROZEN_NORM_EPS
    return tensors


def _safetensors(path: str, _: bool) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path}: needs safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: truncated, or no checkpoint") from error


def _unpickle(path: str, trust_pickle: bool) -> Any:
    with open(path, "rb") as file:
        is_torch = file.read(len(LEGACY_TORCH_MAGIC)) == LEGACY_TORCH_MAGIC
        is_torch |= zipfile.is_zipfile(file)
        file.seek(0)
        try:
            if is_torch:
                return torch.load(file, map_location="cpu", weights_only=not trust_pickle)
            unpickler = pickle.Unpickler if trust_pickle else _ArrayUnpickler
            return unpickler(file, encoding="latin1").load()
        except Exception as error:  # a damaged file makes the unpicklers raise nearly anything
            refused = isinstance(error, pickle.UnpicklingError if is_torch else _RefusedError)
            if not refused:
                raise UserError(f"{path}: truncated, or no checkpoint") from error
            what = "Python objects" if is_torch else f"Python's {error}"
            raise UserError(
                f"{path}: holds {what} besides tensors, and reading it could execute code; if you"
                " trust it, convert it by dgnet convert --trust-pickle"
            ) from error


def _tensors(path: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """``state`` as tensors, without the prefixes of wrappers."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | np.ndarray | np.generic):
            kind = type(value).__name__
            raise UserError(f"{path}: no checkpoint of tensors by name: {name!r} is a {kind}")
    if not state:
        raise UserError(f"{path}: holds no tensors")
    tensors = OrderedDict((INNER.sub("", name), torch.as_tensor(x)) for name, x in state.items())
    if all(name.startswith((OUTER, AVERAGED)) for name in tensors):
        tensors.pop(AVERAGED, None)
    while tensors and all(name.startswith(OUTER) for name in tensors):
        tensors = OrderedDict((name.removeprefix(OUTER), x) for name, x in tensors.items())
    # Modules read the version of their own format from it.
    if tensors.keys() == state.keys() and hasattr(state, "_metadata"):
        tensors._metadata = state._metadata  # type: ignore[attr-defined]
    return tensors
