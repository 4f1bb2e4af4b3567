"""What the launcher says of the processes, read before torch is: one that says half would start trainings side by side."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from contextlib import suppress
from ipaddress import ip_address
from typing import NoReturn

from scalegan.errors import MachineError, UserError

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Beside WORLD_SIZE, what torch wants to know."""
OF_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where Accelerate also looks for a number of processes: `mpirun` and `srun --mpi` set one, and nothing that torch needs."""


def world_size() -> int:
    """As many processes as were started for this training. Raises `UserError` where that is not clear."""
    launched = number("WORLD_SIZE") or 1
    missing = [name for name in NEEDED if name not in os.environ]
    if launched > 1 and missing:
        raise UserError(
            f"WORLD_SIZE is {launched} but {', '.join(missing)} not set: start with `accelerate launch`, or unset WORLD_SIZE "
            "for one process"
        )
    if not os.environ.get("WORLD_SIZE"):
        for name in OF_MPI:
            if (number(name) or 1) > 1:
                raise UserError(
                    f"{name} is {os.environ[name]} but WORLD_SIZE is not set, so each process would train alone: start "
                    f"`accelerate launch` once a machine (slurm/common.sh does), or unset {name} for one process"
                )
    if several_machines() and (address := offered_loopback()):
        raise MachineError(
            f"the other machines would look for this one at {address}, its own loopback: set GLOO_SOCKET_IFNAME to the network "
            "interface between the machines, such as eth0 or ib0"
        )
    return launched


def several_machines() -> bool:
    world = number("WORLD_SIZE") or 1
    return world > (number("LOCAL_WORLD_SIZE") or world)


def offered_loopback() -> str | None:
    """The address by which gloo would have others find this machine, where that leads each of them to itself alone.

    Gloo takes what the own name resolves to, which Debian's installer has made 127.0.1.1. Where the first machine is on
    loopback too, all are one.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return None
    own, first = (address_of(name) for name in (socket.gethostname(), os.environ.get("MASTER_ADDR", "")))
    return own if is_loopback(own) and not is_loopback(first) else None


def address_of(name: str) -> str:
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]) if name else ""
    except OSError:
        return "127.0.0.1" if name == socket.gethostname() else ""  # which is what gloo falls back to


def is_loopback(address: str) -> bool:
    return address != "" and ip_address(address).is_loopback


def rank() -> int:
    """Which of them this one is."""
    return number("RANK") or 0


def leave(code: int) -> NoReturn:
    """End this process; of several at once without taking its interpreter down, after all that is registered for its end.

    Threads of gloo outlive `destroy_process_group` where anything still refers to a group, and one that lets go of a last
    tensor while the interpreter goes down aborts the process (torch 2.13, its issue 190489): what is done would have failed.
    """
    if os.environ.get("WORLD_SIZE") in (None, "", "1"):
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads any more, or the disk is full
            stream.flush()
    os._exit(code)


def number(variable: str) -> int | None:
    """A whole number from the environment, None when it is not set. Raises `UserError` for anything else."""
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"{variable} is {text!r}: it has to be a whole number; unset it, or start through accelerate launch")
    return int(text)


def cores() -> int:
    """Cores that this process may use: of a Slurm job, its own."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no such set
