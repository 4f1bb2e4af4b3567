"""What the launcher says of the processes, read before torch is: one that says half would start trainings side by side."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

from scalegan.errors import UserError

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
    return launched


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
