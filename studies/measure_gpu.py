"""Measure what docs/performance.md says of a GPU, in one go: the tests of the graph, which take
the GPU too wherever there is one; time and memory of backbones beside those of their plain twins;
how often the host waits for the GPU; and the weighted sum against other ways to write it.

Figures are printed and written as they come, so that a run which is cut short leaves what it has.

Examples:
    python -m studies.measure_gpu --json gpu.json
    python -m studies.measure_gpu --json trial.json --device cpu --small    # shows that it works
"""

import argparse
import gc
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from dgnet_cli import arguments
from dgnet_det.analysis.benchmark import draw_edges, run_and_time
from dgnet_det.config import load_cfg
from dgnet_det.graph.aggregation import weighted_sum
from dgnet_det.modeling.build import build_model
from dgnet_det.modeling.folding import optimize_for_inference
from dgnet_det.modeling.observation import dynamic_graphs
from dgnet_det.utils.environment import describe_environment
from dgnet_det.utils.files import write_json
from studies import ROOT

# A DG-Net of configs/COCO-Detection and its plain twin.
TWINS = (
    ("DG_R_50_residual", "R_50"),
    ("DG_R_50", "R_50"),
    ("DG_R_101_residual", "R_101"),
    ("DG_R_101", "R_101"),
    ("DG_X_50_32x4d", "X_50_32x4d"),
    ("DG_MobileNetV2_residual", "MobileNetV2"),
)
INFERENCE = ("float32", "AMP", "channels-last", "compiled", "CUDA graphs")
TRAINING = ("train", "train, AMP")
Run = Callable[[], object]


def build(name: str, device: str, *, closed: float = 0.0) -> nn.Module:
    """The backbone of a config with random weights, a share of its edges closed."""
    config = ROOT / f"configs/COCO-Detection/faster_rcnn_{name}_FPN_1x.yaml"
    model = build_model(load_cfg(str(config), ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device]))
    draw_edges(model, 1, closed=closed, skipped=0.0)
    if not closed:
        for graph in dynamic_graphs(model).values():
            graph.thresholds.data.zero_()
    return cast(nn.Module, model.backbone)


def prepare(backbone: nn.Module, images: Tensor, mode: str) -> Run:
    """One step of a backbone in one of the modes."""
    amp = torch.autocast(images.device.type, enabled="AMP" in mode)
    if mode in TRAINING:
        backbone.train()

        def step() -> None:
            backbone.zero_grad()
            with amp:
                outputs = backbone(images)
            sum(x.float().mean() for x in outputs.values()).backward()

        return step
    backbone.eval()
    optimize_for_inference(backbone)
    backbone.to(memory_format=torch.contiguous_format)
    if mode == "channels-last":
        backbone.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    run: Any = backbone
    if mode in ("compiled", "CUDA graphs"):
        run = torch.compile(run, mode="reduce-overhead" if "graphs" in mode else "default")

    @torch.no_grad()
    def forward() -> None:
        with amp:
            run(images)

    return forward


def compare(ours: Run, other: Run, device: torch.device, repeats: int) -> dict[str, float]:
    """Milliseconds of ``ours``, its time over that of ``other``, pair by pair (medians), and on a
    GPU the highest allocated memory of both, in MiB."""
    figures: dict[str, float] = {}
    for key, run in (("mib", ours), ("mib_other", other)):
        for _ in range(3):
            run()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            figures[key] = (torch.cuda.max_memory_allocated() - before) / 2**20
    pairs = [(run_and_time(device, ours)[1], run_and_time(device, other)[1])
             for _ in range(repeats)]  # fmt: skip
    ratio = median(a / b for a, b in pairs)
    return {"ms": 1000 * median(a for a, _ in pairs), "ratio": ratio, **figures}


def count_waits(run: Run) -> int:
    """How often the host waits for the GPU in one step."""
    run()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def sums(device: torch.device, side: int, repeats: int) -> dict[str, dict[str, float]]:
    """The weighted sum of six feature maps against a plain expression, as it is and compiled."""
    inputs = [torch.randn(1, 256, side, side, device=device) for _ in range(6)]
    weights = torch.rand(1, 6, device=device)

    def plain(inputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        terms = zip(weights.unbind(1), inputs, strict=True)
        return reduce(torch.add, [w[:, None, None, None] * x for w, x in terms])

    compiled = torch.compile(plain)
    torch.testing.assert_close(weighted_sum(inputs, weights), compiled(inputs, weights))
    return {
        name: compare(lambda: weighted_sum(inputs, weights), lambda: other(inputs, weights),  # noqa: B023
                      device, repeats)
        for name, other in (("÷ plain", plain), ("÷ compiled", compiled))
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, metavar="FILE")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="two networks, 64 × 64 pixels")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    height, width, repeats = (64, 64, 2) if args.small else (800, 1344, 20)
    results: dict[str, Any] = {"environment": describe_environment(), "size": [height, width]}

    def keep(kind: str, name: str, figures: Any) -> None:
        results.setdefault(kind, {})[name] = figures
        print(f"{kind}: {name}: {figures}", flush=True)
        write_json(args.json, results)

    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/graph"], cwd=ROOT)
    keep("tests", "tests/graph", "passed" if tests.returncode == 0 else "failed")
    for ours, plain in TWINS[: 2 if args.small else None]:
        for batch in (1, 8):
            images = torch.randn(batch, 3, height, width, device=device)
            for mode in (*INFERENCE, *TRAINING):
                name = f"{ours} ÷ {plain}, batch {batch}, {mode}"
                try:
                    step, other = (
                        prepare(build(n, args.device), images, mode) for n in (ours, plain)
                    )
                    keep("backbones", name, compare(step, other, device, repeats))
                except (RuntimeError, torch.OutOfMemoryError) as error:
                    keep("backbones", name, f"failed: {error}".splitlines()[0])
                gc.collect()
                torch.compiler.reset()
    images = torch.randn(1, 3, height, width, device=device)
    if gpu:
        for ours in ("DG_R_50", "DG_R_50_residual"):
            for closed in (0.0, 0.5):
                run = prepare(build(ours, args.device, closed=closed), images, "float32")
                keep("waits for the GPU", f"{ours}, {closed:.0%} closed", count_waits(run))
    for side in (16, 32) if args.small else (25, 50, 100, 200):
        keep("sums", f"6 × 256 × {side}²", sums(device, side, repeats))


if __name__ == "__main__":
    arguments.run(main)
