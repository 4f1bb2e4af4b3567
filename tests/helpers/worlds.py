"""Several real processes in one gloo world, started from a server that has imported torch already: milliseconds each."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = ["torch._dynamo", "torch.distributed.tensor", "accelerate", "scalegan.cli", "scalegan.train", "scalegan.trainer"]
# What a run needs only at its end, for its evaluation and its plots.
PRELOADED += ["torchmetrics.image.fid", "scalegan.evaluation.evaluator", "matplotlib.pyplot", "scalegan.plots"]
LIMIT = 240
"""Seconds after which a world counts as hung; a little earlier its processes write down where they are."""


@dataclass
class Ended:
    """How one process ended."""

    exitcode: int
    value: Any
    """What the function returned, or the exception that it raised."""
    stderr: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_world(folder: Path, processes: int, function: Callable[..., Any], *arguments: Any, each: bool = False) -> list[Ended]:
    """Run function(*arguments) on every process of a new world of `processes`; one is no world at all, as by `scalegan train`.

    With `each`, a process gets its own element of every argument. `folder` takes their output.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = free_port()
    started = []
    for rank in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        own = [a[rank] for a in arguments] if each else arguments
        log = folder / f"stderr.{os.getpid()}.{port}.{rank}"
        process = context.Process(target=_run, args=(theirs, log, rank, processes, port, function, own), daemon=False)
        process.start()
        theirs.close()
        started.append((process, ours, log))
    ended = []
    for process, pipe, log in started:
        value = None
        with contextlib.suppress(EOFError):
            if pipe.poll(LIMIT):
                value = pipe.recv()
        process.join(LIMIT if value is not None else 5)
        if process.is_alive():
            process.kill()
            process.join()
        ended.append(Ended(process.exitcode or 0, value, log.read_text()))
    return ended


def _run(pipe: Any, log: Path, rank: int, processes: int, port: int, function: Callable[..., Any], arguments: Any) -> None:
    import torch

    with open(log, "wb") as file:
        os.dup2(file.fileno(), 2)
    faulthandler.dump_traceback_later(LIMIT - 5)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the server may have been started by a loader, which blocks some
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # else Accelerate gives every process all cores, and they wait for each other
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    try:
        pipe.send(function(*arguments))
    except BaseException as error:
        traceback.print_exc()
        pipe.send(error)
        sys.stderr.flush()
        os._exit(1)
