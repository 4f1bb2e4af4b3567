"""What a machine has for training and what it lacks: findings of one line each, for `scalegan doctor`."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalegan.launcher import OF_MPI, address_of, cores, number, offered_loopback, several_machines

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    import torch

START_PATIENCE = 300.0
"""Seconds that two processes get to import torch: seconds as a rule, but this machine may be busy."""
GLOO_PATIENCE = 60.0
GB = 1e9


@dataclass(frozen=True)
class Finding:
    state: str
    """`ok`, `warn` (works, but slower or in part) or `fail` (training would stop)."""
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5} {self.subject:<12} {self.text}"


def ok(subject: str, text: str) -> Finding:
    return Finding("ok", subject, text)


def warn(subject: str, text: str) -> Finding:
    return Finding("warn", subject, text)


def fail(subject: str, text: str) -> Finding:
    return Finding("fail", subject, text)


def devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            name = f"cuda:{i} {torch.cuda.get_device_name(i)}"
            try:  # which begins to use it, and so needs some memory there
                free, total = torch.cuda.mem_get_info(i)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                yield fail("device", f"{name} cannot be used ({reason}): another process may fill or own it (nvidia-smi)")
                continue
            text = f"{name}, {free / GB:.0f} of {total / GB:.0f} GB free"
            yield ok("device", text) if free > total / 2 else warn("device", f"{text}: another process uses it (nvidia-smi)")
    elif Path("/proc/driver/nvidia/version").exists():
        yield warn(
            "device", f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU: install a CUDA build of torch"
        )
    else:
        yield ok("device", "cpu (no GPU here)")


def bf16() -> Iterator[Finding]:
    """On a GPU by what it says of itself, on a CPU by the clock."""
    import torch

    from scalegan.distributed import has_bf16

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            yield ok("bf16", "supported by the GPU")
        else:
            yield warn("bf16", "not supported by the GPU: use --train.precision fp16 or fp32")
        return
    gain = convolution_seconds(torch.float32) / convolution_seconds(torch.bfloat16)
    text = f"convolutions take {1 / gain:.2f} of their float32 time"
    if gain > 1:
        yield ok("bf16", text)
    elif has_bf16("cpu"):
        yield warn("bf16", f"{text}: use --train.precision fp32")
    else:
        yield ok("bf16", f"{text}: train.precision auto takes fp32")


def convolution_seconds(dtype: torch.dtype) -> float:
    import torch

    images = torch.randn(16, 64, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(64, 128, 4, 2, 1, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            layer(images)
            best = min(best, time.perf_counter() - start)
    return best


def threads() -> Iterator[Finding]:
    import torch

    ours = cores()
    processes = number("LOCAL_WORLD_SIZE") or 1
    each = torch.get_num_threads()
    text = f"{ours} cores for {processes} process{'es' * (processes > 1)} of {each} thread{'s' * (each > 1)}"
    if processes * each > ours:
        yield warn("threads", f"{text}: they wait for each other; export OMP_NUM_THREADS={max(1, ours // processes)}")
    else:
        yield ok("threads", text)


def limits() -> Iterator[Finding]:
    import resource

    shm = Path("/dev/shm")
    if shm.is_dir():
        size = shutil.disk_usage(shm).total
        text = f"{size / GB:.1f} GB"
        if size < GB:
            yield warn("/dev/shm", f"{text}: loader processes need more; docker run --shm-size=8g, or --data.workers 0")
        else:
            yield ok("/dev/shm", text)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    text = f"{files} (ulimit -n)"
    enough = files >= 1024 or files == resource.RLIM_INFINITY
    yield ok("open files", text) if enough else warn("open files", f"{text}: loaders and sockets need more; ulimit -n 4096")


def disk(folder: Path) -> Iterator[Finding]:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / GB:.1f} GB free at {folder.absolute()}"
    if free < 0.5 * GB:
        yield fail("disk", f"{text}: checkpoints will not fit; free some space or give --run another disk")
    elif free < 5 * GB:
        yield warn("disk", f"{text}: checkpoints and samples of a long run may not fit")
    else:
        yield ok("disk", text)
    if not os.access(folder, os.W_OK):
        yield fail("disk", f"{folder.absolute()} cannot be written to: choose another folder or change its permissions")


def rendezvous() -> Iterator[Finding]:
    """What a launcher has put into the environment for the processes to find each other."""
    world, rank, port = number("WORLD_SIZE"), number("RANK"), number("MASTER_PORT")
    address, tasks = os.environ.get("MASTER_ADDR", ""), number("SLURM_NTASKS")
    if world is None:
        text = "1 process (WORLD_SIZE is not set)"
        if alone := next((name for name in OF_MPI if (number(name) or 1) > 1), ""):
            yield fail("launch", f"{alone} is {number(alone)} but WORLD_SIZE is not set: start through accelerate launch")
            return
        hint = f"{text} though Slurm gives {tasks} tasks: start through the scripts in slurm/"
        yield ok("launch", text) if (tasks or 1) == 1 else warn("launch", hint)
    elif world < 1 or (rank is not None and rank >= world):
        yield fail("launch", f"RANK {rank} is not below WORLD_SIZE {world}: unset both, or start through accelerate launch")
    elif world > 1 and (not address or port is None):
        yield fail("launch", f"WORLD_SIZE is {world} without MASTER_ADDR and MASTER_PORT: start through accelerate launch")
    else:
        yield ok("launch", f"WORLD_SIZE {world}, RANK {rank}")
    if several_machines() or (number("SLURM_NNODES") or 1) > 1:
        if loopback := offered_loopback():
            remedy = "set GLOO_SOCKET_IFNAME to the network interface between the machines, such as eth0 or ib0"
            yield warn("address", f"other machines would look for this one at {loopback}, its own loopback: {remedy}")
        else:
            yield ok("address", os.environ.get("GLOO_SOCKET_IFNAME") or address_of(socket.gethostname()))
    if not address:
        return
    try:
        place = socket.getaddrinfo(address, port or 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        yield fail(
            "master", f"MASTER_ADDR {address} cannot be resolved ({error.strerror}): give a host name that all nodes know"
        )
        return
    yield ok("master", f"{address} is {place[4][0]}")
    if port and not rank:
        with socket.socket(place[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place[4])
                yield ok("port", f"MASTER_PORT {port} is free")
            except OSError as error:
                yield fail("port", f"MASTER_PORT {port} cannot be used here ({error.strerror}): choose another one")


def gloo() -> Iterator[Finding]:
    """Two processes add up 1 MB over this machine's own network, as DDP on the CPU and the control group do."""
    context = multiprocessing.get_context("spawn")
    remedy = "set GLOO_SOCKET_IFNAME to a network interface of this machine, such as lo"
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder, "meeting").as_uri()
        answers: multiprocessing.Queue[float | str] = context.Queue()
        started = context.Barrier(3)
        pair = [context.Process(target=all_reduce, args=(rank, meeting, started, answers), daemon=True) for rank in (0, 1)]
        try:
            for process in pair:
                process.start()
            started.wait(START_PATIENCE)
            results = [answers.get(timeout=GLOO_PATIENCE) for _ in pair]
        except (queue.Empty, threading.BrokenBarrierError):
            yield fail("gloo", f"two processes on this machine did not meet in {GLOO_PATIENCE:.0f} s: {remedy}")
            return
        finally:
            for process in pair:
                process.kill()
                process.join()
    times = [result for result in results if isinstance(result, float)]
    if len(times) == len(pair):
        yield ok("gloo", f"two processes add up 1 MB in {1000 * max(times):.1f} ms")
    else:
        said = next(str(result) for result in results if result not in times)
        yield fail("gloo", f"two processes on this machine cannot talk ({said}): {remedy}")


def all_reduce(rank: int, meeting: str, started: Barrier, answers: multiprocessing.Queue[float | str]) -> None:
    """Put the seconds of the best of five turns into `answers`, or what went wrong."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    started.wait()
    try:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        best = float("inf")
        for _ in range(5):
            values = torch.full((1 << 18,), float(rank + 1))
            start = time.perf_counter()
            dist.all_reduce(values)
            best = min(best, time.perf_counter() - start)
            assert values.eq(3).all()
    except RuntimeError as error:
        answers.put(" ".join(str(error).split())[-120:])
    else:
        answers.put(best)
        dist.destroy_process_group()
