"""Processes and devices: Accelerate's set-up, and the traps around it that would go unnoticed."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from scalegan.config import TrainConfig
from scalegan.errors import MachineError, UserError

TIMEOUT = timedelta(minutes=60)  # real statistics of a large data set are made while others wait


def make_accelerator(train: TrainConfig) -> Accelerator:
    """The accelerator of this process. Raises `UserError` where the launcher and Accelerate disagree or the device lacks."""
    if train.device == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "train.device is cuda but torch sees no GPU here: use --train.device cpu, or check the driver and torch build"
        )
    cpu = train.device == "cpu" or not torch.cuda.is_available()
    if cpu and train.precision == "fp16":
        raise UserError("train.precision fp16 needs a GPU: use --train.precision bf16 or fp32")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if launched > 1 and missing:
        raise UserError(
            f"WORLD_SIZE is {launched} but {', '.join(missing)} not set: start with `accelerate launch`, or unset WORLD_SIZE "
            "for one process"
        )
    if cpu and launched > 1:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else Accelerate makes a world of one out of each process
    # Accelerate has no name yet for what torch 2.13 would rather be told.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no" if train.precision == "fp32" else train.precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=TIMEOUT),
        ],
    )
    if launched != accelerator.num_processes:
        raise UserError(
            f"the launcher started {launched} processes but Accelerate sees {accelerator.num_processes}: "
            "start with `accelerate launch --config_file launch/cpu.yaml` (CPU) or launch/multi_gpu.yaml"
        )
    if train.deterministic and not cpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


def control_group() -> dist.ProcessGroup | None:
    """A gloo group for flags and small facts, apart from the gradients' group; None with one process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=TIMEOUT)  # type: ignore[no-any-return]


def from_all(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Every process's value, by process."""
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def from_main(value: Any, group: dist.ProcessGroup | None) -> Any:
    """Process 0's value on every process; an exception that process 0 passes as value is raised on all."""
    if group is not None:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=group)
        value = box[0]
    if isinstance(value, Exception):
        raise value
    return value
