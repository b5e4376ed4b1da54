"""The processes of a run: started by this program, or by torchrun, SLURM or Kubernetes."""

import importlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2 import engine
from detectron2.config import CfgNode
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException

from dgnet_det.errors import UserError, user_message
from dgnet_det.modeling.observation import routed_stages

# Each launcher's variables for rank and number of processes, of all and of one machine. Kubernetes'
# PyTorchJob sets torchrun's first two.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_TASKS_PER_NODE"),
    "mpirun": tuple(
        f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    ),
}
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


class ProcessLostError(UserError):
    """One of several processes was killed."""


class Launched(NamedTuple):
    """This process's place among those that another launcher than Detectron2's has started."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int


def launched() -> Launched | None:
    """Read a launcher's variables; None where this program starts its processes itself.

    Raises:
        UserError: the variables contradict each other.
    """
    for launcher, names in LAUNCHERS.items():
        rank, size, local_rank, local_size = (os.environ.get(name, "") for name in names)
        if launcher == "torchrun" and bool(rank) != bool(size):
            raise UserError(f"{names[0]} and {names[1]} in the environment: set both or neither")
        if not rank or not size or int(size) == 1:
            continue
        # SLURM: "4(x2)" are four on each of two machines.
        local = re.fullmatch(r"(\d+)(\(x\d+\))?", local_size or "1")
        if (
            not local
            or int(size) % int(local[1])
            or int(rank) % int(local[1]) != int(local_rank or 0)
        ):
            raise UserError(
                f"{names[3]} {local_size}: start as many processes on every machine, with"
                " consecutive ranks on each"
            )
        return Launched(launcher, int(rank), int(size), int(local_rank or 0), int(local[1]))
    return None


def restarted() -> bool:
    """Whether a launcher has restarted this run after a process was lost."""
    return any(int(os.environ.get(name) or 0) for name in RESTARTS)


def launch(
    function: Callable[..., None],
    cfg: CfgNode,
    *args: Any,
    processes: int | None = None,
    machines: int | None = None,
    machine_rank: int | None = None,
    url: str | None = None,
    modules: Sequence[str] = (),
) -> None:
    """Call ``function(cfg, *args)`` in this process if another launcher started it, else in those
    of Detectron2's ``launch``: on GPUs, or on the CPU where there are none.

    Args:
        function, cfg, args: what to call.
        processes, machines, machine_rank, url: as for Detectron2's ``launch``; default: one.
        modules: modules that every process imports first.

    Raises:
        UserError: the options do not go together, with the GPUs or with another launcher; or a
            process was killed.
        KeyboardInterrupt: with the number of the signal that stopped the processes.
    """
    options = {
        "--num-gpus": processes,
        "--num-machines": machines,
        "--machine-rank": machine_rank,
        "--dist-url": url,
    }
    if other := launched():
        if given := [name for name, value in options.items() if value is not None]:
            raise UserError(
                f"{', '.join(given)}: {other.launcher} has started this process as one of"
                f" {other.world_size}: leave the option out, or start the tool without"
                f" {other.launcher}"
            )
        _join(other, cfg)
        _work(function, modules, cfg, *args)
        return
    processes = 1 if processes is None else processes
    machines, machine_rank = machines or 1, machine_rank or 0
    if machines > 1 and url in (None, "auto"):
        raise UserError(
            f"--num-machines {machines}: give --dist-url tcp://HOST:PORT of the first machine, and"
            " --machine-rank"
        )
    if not 0 <= machine_rank < machines:
        raise UserError(f"--machine-rank {machine_rank}: give 0 to {machines - 1}")
    _check_gpus(cfg, processes)
    if processes * machines == 1:
        _work(function, modules, cfg, *args)
        return
    with _forwarded_signals() as received:
        try:
            engine.launch(
                _work, processes, machines, machine_rank, url or "auto",
                args=(function, modules, cfg, *args),
            )  # fmt: skip
        except ProcessExitedException as error:
            number = error.exit_code - 128
            received += [number] if number in (signal.SIGINT, signal.SIGTERM) else []
            if not received:
                how = error.signal_name or f"exit code {error.exit_code}"
                raise ProcessLostError(
                    f"process {error.error_index} was ended by {how}, and so the others were ended"
                ) from error
        if received:
            raise KeyboardInterrupt(received[0])


def _check_gpus(cfg: CfgNode, processes: int) -> None:
    if processes < 1:
        raise UserError(f"--num-gpus {processes}: give at least 1")
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise UserError(f"{processes} processes: this machine has {gpus} GPUs")
    if processes > 1 and ":" in cfg.MODEL.DEVICE:
        raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: for several processes, set it to cuda")
    if gpus and processes > 1 and cfg.MODEL.DEVICE == "cpu":
        raise UserError("MODEL.DEVICE cpu: for CPU processes set CUDA_VISIBLE_DEVICES= as well")


def _join(process: Launched, cfg: CfgNode) -> None:
    """Join the process group of another launcher's processes."""
    single = process.world_size == process.local_size
    if process.launcher != "torchrun":
        if process.launcher == "srun" and not single:
            # The first of "node[01-03,7],other".
            hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "")
            first = re.sub(r"^([^\[,]*)\[?(\w*).*", r"\1\2", hosts)
            os.environ.setdefault("MASTER_ADDR", first)
        elif single:
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        job = int(os.environ.get("SLURM_JOB_ID") or 0)
        os.environ.setdefault("MASTER_PORT", str(15000 + job % 15000))
    if missing := [x for x in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(x)]:
        raise UserError(
            f"{' and '.join(missing)}: not in the environment: {process.launcher} started this"
            f" process as one of {process.world_size}, which must know the first one's machine and"
            " a free port there"
        )
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    if not on_cpu:
        gpus = torch.cuda.device_count()
        if 1 < gpus < process.local_size:
            raise UserError(f"{process.local_size} processes: this machine has {gpus} GPUs")
        # SLURM may show each process its own GPU alone.
        torch.cuda.set_device(process.local_rank % gpus)
    store, _, _ = next(dist.rendezvous("env://", process.rank, process.world_size))
    # torchrun's store may outlive a restart, with the addresses of processes that are lost.
    attempt = os.environ.get(RESTARTS[0], "0")
    dist.init_process_group(
        "gloo" if on_cpu else "nccl",
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=process.rank,
        world_size=process.world_size,
        timeout=engine.DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(process.local_size)
    comm.synchronize()


@contextmanager
def _forwarded_signals() -> Iterator[list[int]]:
    """Yield the numbers of the signals that this process gets. It forwards them to its processes,
    which save a checkpoint, and waits for them."""
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        children = multiprocessing.active_children()
        if received.count(number) or not children:
            raise KeyboardInterrupt(number)
        received.append(number)
        for child in children:
            child.terminate()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(function: Callable[..., None], modules: Sequence[str], *args: Any) -> None:
    sys.path.insert(0, os.getcwd())
    for module in modules:
        importlib.import_module(module)
    try:
        function(*args)
    except OSError as error:
        message = user_message(error)
        if message is None:
            raise
        raise UserError(message) from error
    except KeyboardInterrupt as error:
        if multiprocessing.parent_process() is None:
            raise
        # Else the exit code would be 0.
        sys.exit(128 + (error.args or (signal.SIGINT,))[0])
    # Else the interpreter would abort as it ends. After an error the other processes do not come.
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()


def distribute(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Wrap the model in ``DistributedDataParallel`` if there are several processes."""
    # A device id, which Detectron2 gives by default, is not for CPU processes.
    device_ids = None if cfg.MODEL.DEVICE == "cpu" else [torch.cuda.current_device()]
    return create_ddp_model(
        model,
        device_ids=device_ids,
        broadcast_buffers=False,
        find_unused_parameters=bool(routed_stages(model)),  # not all branches run all the time
    )
