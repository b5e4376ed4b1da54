"""The page of a detector that routes between branches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn
from tqdm import tqdm

from dgnet_det.analysis.counts import ImageCounter
from dgnet_det.data import CheckedDatasetMapper
from dgnet_det.modeling.observation import record_choices
from dgnet_det.utils.branch_pictures import draw_branches


@torch.no_grad()
def survey_choices(
    model: nn.Module, cfg: CfgNode, images: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Which branches images take, and what that costs, as JSON takes it.

    Args:
        model: a detector with routed stages, in evaluation mode.
        cfg: its config.
        images: in Detectron2's dataset format, or with a ``file_name`` alone.
    """
    read, count = CheckedDatasetMapper(cfg, is_train=False), ImageCounter(model)
    seen: list[dict[str, Any]] = []
    gates = []
    with record_choices(model) as choices:
        for image in tqdm(images, desc="images", unit="image"):
            macs = count(read(image)["image"])
            seen.append({"file": str(image["file_name"]), "macs": macs.ran.macs})
            seen[-1]["dearest_macs"] = macs.all_open.macs
            gates.append(torch.cat([of_stage.gate[0] for of_stage in choices.values()]).cpu())
    frequency = torch.stack(gates).double().mean(dim=0)
    distance = torch.stack([(gate - frequency).abs().sum() / 2 for gate in gates]) / len(frequency)
    names = [f"{name}, {j}" for name, one in choices.items() for j in one.connections]
    shares = np.array([image["macs"] / image["dearest_macs"] for image in seen])
    return {
        "num_images": len(seen),
        "branches": list(next(iter(choices.values())).branches),
        "connections": dict(zip(names, frequency.tolist(), strict=True)),
        "connections_that_vary": int(frequency.lt(1).logical_and(frequency.gt(0)).any(dim=1).sum()),
        "share_of_dearest": {
            "mean": shares.mean(), "std": shares.std(), "min": shares.min(), "max": shares.max()
        },
        "images": [
            {**image, "distance": float(far)} for image, far in zip(seen, distance, strict=True)
        ],
    }  # fmt: skip


def draw_frequencies(report: Mapping[str, Any]) -> Any:
    """How often each branch is taken; the most frequent ones are framed."""
    values = np.array(list(report["connections"].values()))
    most = values == values.max(axis=1, keepdims=True)
    names, branches = list(report["connections"]), report["branches"]
    return draw_branches(names, branches, values, most, label="share of the images")
