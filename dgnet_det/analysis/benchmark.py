"""Time and memory of a model against others.

Every model has a process of its own, and so a peak memory of its own. The processes take turns,
A B C A B C …, so that all meet the same drift of the machine's speed.
"""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from tqdm import tqdm

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.drnet.routing import RouterNet
from dgnet_det.errors import UserError
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import dynamic_graphs

Result = TypeVar("Result")

SEED = 0
BOXES_PER_IMAGE = 10


class Workload(NamedTuple):
    """The step that is measured."""

    mode: str  # "inference" or "train"
    part: str  # "backbone" (with its FPN) or "model", the whole detector
    height: int  # of the input, in pixels
    width: int
    batch: int


class Contestant(NamedTuple):
    """A model in a benchmark."""

    name: str
    cfg: CfgNode
    stock: bool = False  # whether it runs as Detectron2 ships it, not optimized for inference
    closed: float = 0.0  # shares of an untrained model, for draw_edges
    skipped: float = 0.0


class Measurement(NamedTuple):
    """One model's runs."""

    seconds: list[float]  # one per repeat
    peak_bytes: int  # the highest of all repeats, less the process's memory before


def stock_config(cfg: CfgNode) -> CfgNode:
    """The config with Detectron2's own ResNet in place of ours.

    Raises:
        UserError: Detectron2 has no such network.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if cfg.MODEL.DGNET.FAMILY != "resnet" or not re.search("d[gr]net", name):
        raise UserError(
            f"MODEL.DGNET.FAMILY {cfg.MODEL.DGNET.FAMILY}, MODEL.BACKBONE.NAME {name}: Detectron2"
            " has a stock ResNet and ResNeXt only"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = re.sub("d[gr]net", "resnet", name)
    cfg.freeze()
    return cfg


def measure(
    contestants: Sequence[Contestant], workload: Workload, *, repeats: int
) -> dict[str, Measurement]:
    """Run every contestant once per repeat, in turn, after two runs each to warm up. Returns the
    measurements by the contestants' names.

    Raises:
        UserError: a contestant cannot be built or run.
    """
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = {}
        for contestant in contestants:
            process = stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn))
            processes[contestant.name] = process
            _call(process, contestant.name, _prepare, contestant, workload, torch.get_num_threads())
        for name, process in [*processes.items()] * 2:
            _call(process, name, _run)
        runs: dict[str, list[tuple[float, int]]] = {name: [] for name in processes}
        for _ in tqdm(range(repeats), desc="repeats"):
            for name, process in processes.items():
                runs[name].append(_call(process, name, _run))
    return {
        name: Measurement([seconds for seconds, _ in of_one], max(peak for _, peak in of_one))
        for name, of_one in runs.items()
    }


def compare_runs(ours: Measurement, other: Measurement) -> dict[str, Any]:
    """Time of ``ours`` over that of ``other``, pair by pair, and the ratio of peak memories."""
    ratios = [a / b for a, b in zip(ours.seconds, other.seconds, strict=True)]
    return {"ratio": median_and_range(ratios), "memory_ratio": ours.peak_bytes / other.peak_bytes}


def median_and_range(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def draw_edges(model: nn.Module, batch: int, *, closed: float, skipped: float) -> None:
    """Make the routers of an untrained model return drawn weights, the same at every call.

    In graphs every τ is 0.25, γ 0.01 and α 0.5; but α is 0.1 for a share ``closed`` of the edges
    into each node, drawn per image, and for all edges into a share ``skipped`` of the blocks, the
    same in all images. RouterNets choose the first branch; but the last, the identity, in a share
    ``skipped`` of the connections that have a choice, drawn per image.
    """

    def answer(router: nn.Module, values: Tensor) -> None:
        router.register_forward_hook(lambda _, inputs, output: output * 0 + values.to(output))

    generator = torch.Generator().manual_seed(SEED)
    routers = [m for m in model.modules() if isinstance(m, RouterNet)]
    number = sum(router.shape[0] for router in routers)
    ranks = torch.rand(batch, number, generator=generator).argsort(dim=1).argsort(dim=1)
    last = (ranks < round(skipped * number)).long()
    parts = last.split([router.shape[0] for router in routers], dim=1)
    for router_net, of_router in zip(routers, parts, strict=True):
        # So far apart that the others are bypassed.
        num_branches = router_net.shape[1]
        answer(router_net, 1000 * F.one_hot(of_router * (num_branches - 1), num_branches))
    for graph in dynamic_graphs(model).values():
        n = graph.num_nodes
        scores = torch.rand(batch, n, n, generator=generator)
        alpha = torch.full_like(scores, 0.5)
        # Node 1 has one edge: without it, it would be skipped.
        for j in range(2, n):
            sources = graph.edges[j].nonzero().flatten()
            ranks = scores[:, j, sources].argsort(dim=1).argsort(dim=1)
            alpha[:, j, sources] = 0.1 + 0.4 * (ranks >= round(closed * len(sources)))
        blocks = torch.randperm(n - 2, generator=generator) + 1
        alpha[:, blocks[: round(skipped * (n - 2))]] = 0.1
        graph.thresholds.data.fill_(0.25)
        for i, router in graph.routers.items():
            answer(router, alpha[:, int(i) + graph.nearest :, int(i)])
        for name, gamma in graph.named_parameters():
            if name.startswith("gammas."):
                gamma.data.fill_(0.01)


def _call(process: ProcessPoolExecutor, name: str, function: Callable, *args: Any) -> Any:
    """Call ``function`` in a contestant's process."""
    try:
        return process.submit(function, *args).result()
    except BrokenProcessPool:
        raise UserError(f"{name}: its process died; is there enough memory?") from None


_prepared: dict[str, Any] = {}  # in a contestant's process


def _prepare(contestant: Contestant, workload: Workload, threads: int) -> None:
    device = contestant.cfg.MODEL.DEVICE
    torch.set_num_threads(threads)
    torch.zeros(1, device=device)
    before = _memory(device, peak=False)
    _prepared.update(device=device, before=before, step=make_step(contestant, workload))


def _run() -> tuple[float, int]:
    """Seconds and peak memory of one step."""
    device = _prepared["device"]
    _reset_peak(device)
    _, seconds = run_and_time(torch.device(device), _prepared["step"])
    return seconds, _memory(device, peak=True) - _prepared["before"]


def run_and_time(
    device: torch.device, function: Callable[..., Result], *args: Any
) -> tuple[Result, float]:
    """Call ``function`` and return its result, and the seconds that it took on ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function(*args)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def make_step(contestant: Contestant, workload: Workload) -> Callable[[], object]:
    """One inference or training step of a contestant on random images, as a function."""
    torch.manual_seed(SEED)
    cfg = contestant.cfg
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        DGNetCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    else:
        _damp_blocks(model)
        draw_edges(model, workload.batch, closed=contestant.closed, skipped=contestant.skipped)
    images = (
        torch.rand(workload.batch, len(cfg.MODEL.PIXEL_MEAN), workload.height, workload.width) * 255
    )
    inputs: Any = [_annotated(image) for image in images]
    part: Any = model
    if workload.part == "backbone":
        inputs, part = part.preprocess_image(inputs).tensor, part.backbone
    if workload.mode == "inference":
        part.eval()
        if not contestant.stock:
            optimize_for_inference(part)
        return partial(torch.no_grad()(part), inputs)
    part.train()
    optimizer = build_optimizer(cfg, part)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # random weights would diverge
    return partial(_train_step, part, optimizer, inputs)


def _damp_blocks(model: nn.Module) -> None:
    """Keep the features of an untrained ResNet of fixed norms finite: they would double at every
    block, and a detector would make fewer proposals than a trained one."""
    for module in model.modules():
        if isinstance(module, (BasicBlock, BottleneckBlock)):
            last = module.conv3 if isinstance(module, BottleneckBlock) else module.conv2
            if last.norm is not None:
                last.norm.weight.data.fill_(0.25)


def _annotated(image: Tensor) -> dict[str, Any]:
    """An image as Detectron2's models take it, with random boxes of class 0."""
    height, width = image.shape[1:]
    corner = 0.7 * torch.rand(BOXES_PER_IMAGE, 2)
    opposite = corner + 0.05 + 0.25 * torch.rand(BOXES_PER_IMAGE, 2)
    boxes = torch.cat([corner, opposite], dim=1) * torch.tensor([width, height] * 2)
    classes = torch.zeros(BOXES_PER_IMAGE, dtype=torch.long)
    instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=classes)
    return {"image": image, "height": height, "width": width, "instances": instances}


def _train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any) -> None:
    with EventStorage():  # Detectron2's heads log there
        outputs = model(inputs)
    # Losses of a detector, feature maps of a backbone.
    loss = sum(value.mean() for value in outputs.values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _memory(device: str, *, peak: bool) -> int:
    """Bytes on the GPU, or resident in the process (Linux: VmHWM and VmRSS)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
