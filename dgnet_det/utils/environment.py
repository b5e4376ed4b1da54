"""The machine and versions that figures were measured with."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision


def describe_environment() -> dict[str, Any]:
    """Hardware and versions, to print with figures."""
    cpu = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "CPU": f"{cpu}, {os.cpu_count()} cores",
        **gpu,
        "threads": torch.get_num_threads(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "torchvision": torchvision.__version__,
        "Detectron2": detectron2.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
