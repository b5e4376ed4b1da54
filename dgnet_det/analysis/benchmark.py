"""Time and memory of a model against others, measured in turn.

Every model lives in a process of its own, so that each one's peak memory is its own; the processes
take turns, A B C A B C …, so that a drift of the machine's speed meets all of them, and while one
works the others wait.
"""

import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import detectron2.modeling
import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from dgnet_det.checkpoint import DGNetCheckpointer
from dgnet_det.config import one_line
from dgnet_det.errors import UserError, user_message
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import dynamic_graphs

SEED = 0
BOXES_PER_IMAGE = 10


class Workload(NamedTuple):
    """What is measured."""

    mode: str  # "inference" or "train"
    part: str  # "backbone" (with its FPN) or "model", the whole detector
    height: int  # of the input, in pixels
    width: int
    batch: int


class Contestant(NamedTuple):
    """A model in a benchmark."""

    name: str
    cfg: CfgNode
    # Whether it is run as Detectron2 ships it, without :func:`optimize_for_inference`.
    stock: bool = False
    # Of an untrained model, as :func:`draw_edges` takes them.
    closed: float = 0.0
    skipped: float = 0.0


class Measurement(NamedTuple):
    """One model's runs."""

    seconds: list[float]  # one per repeat
    peak_bytes: int  # the highest of all repeats, without what the process used before


def stock_config(cfg: CfgNode) -> CfgNode:
    """The config with Detectron2's own ResNet in place of ours.

    Raises:
        UserError: the family is none that Detectron2's ``build_resnet_backbone`` builds.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if cfg.MODEL.DGNET.FAMILY != "resnet" or "dgnet" not in name:
        raise UserError(
            f"--baseline stock: MODEL.DGNET.FAMILY {cfg.MODEL.DGNET.FAMILY}, backbone {name}:"
            " Detectron2 has a stock ResNet and ResNeXt only"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = name.replace("dgnet", "resnet")
    cfg.freeze()
    return cfg


def measure(
    contestants: Sequence[Contestant],
    workload: Workload,
    *,
    repeats: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Measurement]:
    """Run every contestant once per repeat, in turn, after a warm-up of two runs each.

    Args:
        contestants: the models.
        workload: what they do.
        repeats: how often.
        progress: called with the number of finished repeats.

    Returns:
        By the contestants' names.

    Raises:
        UserError: a contestant cannot be built or run.
    """
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    processes = []
    try:
        for contestant in contestants:
            ours, theirs = context.Pipe()
            arguments = (theirs, contestant, workload, torch.get_num_threads())
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that its death ends the waiting
            processes.append(process)
            connections[contestant.name] = ours
            _ask(ours, contestant.name)
        for _ in range(2):
            for name, connection in connections.items():
                connection.send("warm up")
                _ask(connection, name)
        seconds: dict[str, list[float]] = {name: [] for name in connections}
        peaks = dict.fromkeys(connections, 0)
        for done in range(repeats):
            for name, connection in connections.items():
                connection.send("run")
                taken, peak = _ask(connection, name)
                seconds[name].append(taken)
                peaks[name] = max(peaks[name], peak)
            progress(done + 1)
    finally:
        for process in processes:
            process.terminate()
    return {name: Measurement(seconds[name], peaks[name]) for name in connections}


def compare(ours: Measurement, baseline: Measurement) -> dict[str, Any]:
    """Time of ``ours`` over that of ``baseline``, pair by pair, and the ratio of peak memories."""
    ratios = [a / b for a, b in zip(ours.seconds, baseline.seconds, strict=True)]
    return {"ratio": spread(ratios), "memory_ratio": ours.peak_bytes / baseline.peak_bytes}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def environment(device: str) -> dict[str, Any]:
    """Hardware and versions, for beside the figures."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def draw_edges(model: nn.Module, batch: int, *, closed: float, skipped: float) -> None:
    """Have the routers of an untrained model answer with drawn weights, the same at every call.

    Every α is 0.5, or 0 for a share ``closed`` of the edges into each node, drawn per image, and
    for all edges into a share ``skipped`` of the blocks of each graph, the same in all images. γ
    is 0.01, so that open edges count.
    """
    generator = torch.Generator().manual_seed(SEED)

    def answer(column: Tensor, router: nn.Module, inputs: object, alpha: Tensor) -> Tensor:
        return alpha * 0 + column.to(alpha)

    for graph in dynamic_graphs(model).values():
        n = graph.num_nodes
        scores = torch.rand(batch, n, n, generator=generator)
        alpha = torch.full_like(scores, 0.5)
        # Node 1 has one edge: without it, it would be skipped.
        for j in range(2, n):
            sources = graph.edges[j].nonzero().flatten()
            ranks = scores[:, j, sources].argsort(dim=1).argsort(dim=1)
            alpha[:, j, sources] = (ranks >= round(closed * len(sources))) * 0.5
        blocks = torch.randperm(n - 2, generator=generator) + 1
        alpha[:, blocks[: round(skipped * (n - 2))]] = 0.0
        graph.thresholds.data.fill_(0.25)
        for i, router in graph.routers.items():
            first = int(i) + (2 if graph.fixed_chain else 1)
            router.register_forward_hook(partial(answer, alpha[:, first:, int(i)]))
        if graph.fixed_chain:
            for gamma in graph.gammas.values():
                gamma.data.fill_(0.01)


def _ask(connection: Connection, name: str) -> Any:
    try:
        answer = connection.recv()
    except EOFError:
        raise UserError(f"{name}: its process died; is there enough memory?") from None
    if isinstance(answer, str):
        raise UserError(f"{name}: {answer}")
    return answer


def _serve(
    connection: Connection, contestant: Contestant, workload: Workload, threads: int
) -> None:
    device = contestant.cfg.MODEL.DEVICE
    try:
        torch.set_num_threads(threads)
        torch.zeros(1, device=device)
        before = _memory(device, peak=False)
        step = make_step(contestant, workload)
        connection.send(None)
        while True:
            connection.recv()
            _reset_peak(device)
            start = time.perf_counter()
            step()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
            connection.send((taken, _memory(device, peak=True) - before))
    except UserError as error:
        connection.send(user_message(error))
    except Exception as error:
        connection.send(one_line(error))


def make_step(contestant: Contestant, workload: Workload) -> Callable[[], object]:
    """One inference or training step of a contestant on random images, as a function."""
    torch.manual_seed(SEED)
    cfg = contestant.cfg
    model = detectron2.modeling.build_model(cfg) if contestant.stock else build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        DGNetCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    else:
        _damp_blocks(model)
        draw_edges(model, workload.batch, closed=contestant.closed, skipped=contestant.skipped)
    images = torch.rand(workload.batch, 3, workload.height, workload.width) * 255
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
    """Keep the features of an untrained ResNet of fixed norms, which would double at every block,
    finite, and so the number of proposals that of a trained one."""
    for module in model.modules():
        if isinstance(module, (BasicBlock, BottleneckBlock)):
            last = module.conv3 if isinstance(module, BottleneckBlock) else module.conv2
            if last.norm is not None:
                last.norm.weight.data.fill_(0.25)


def _annotated(image: Tensor) -> dict[str, Any]:
    """An image as Detectron2's models take it, with random boxes of class 0."""
    height, width = image.shape[1:]
    size = torch.tensor([width, height, width, height])
    corner = torch.rand(BOXES_PER_IMAGE, 2).repeat(1, 2) * 0.7
    extent = torch.rand(BOXES_PER_IMAGE, 2) * 0.25 + 0.05
    boxes = (corner + torch.cat([torch.zeros_like(extent), extent], dim=1)) * size
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
