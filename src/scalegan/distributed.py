"""Processes and devices: Accelerate's set-up, and the traps around it that would go unnoticed."""

from __future__ import annotations

import json
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env

from scalegan import launcher
from scalegan.config import Config, TrainConfig
from scalegan.errors import MachineError, UserError, full_gpu
from scalegan.float32 import plain_float32

TIMEOUT = timedelta(minutes=60)  # real statistics of a large data set are made while others wait


def has_bf16(device: str) -> bool:
    """Whether `train.device` multiplies bfloat16 in hardware; on a CPU, emulated convolutions took 6 to 9 times as long."""
    if device != "cpu" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # true of any x86 with AVX-512, which may emulate it
    return bool(torch.cpu._is_avx512_bf16_supported())


def settle_precision(config: Config, recorded: str | None = None) -> Config:
    """`train.precision` auto -> what the run was `recorded` to have begun with, or else what this machine is fast in."""
    if config.train.precision != "auto":
        return config
    precision = recorded or ("bf16" if has_bf16(config.train.device) else "fp32")
    return replace(config, train=replace(config.train, precision=precision))  # type: ignore[arg-type]


def check_device(train: TrainConfig) -> bool:
    """Whether it is the CPU that trains. Raises `UserError` for a GPU that is not there, or is needed."""
    if train.device == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "train.device is cuda but torch sees no GPU here: use --train.device cpu, or check the driver and torch build"
        )
    cpu = train.device == "cpu" or not torch.cuda.is_available()
    if not cpu and parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise UserError(
            "Accelerate was told to use the CPU (`accelerate launch --cpu`, or ACCELERATE_USE_CPU) and train.device is "
            f"{train.device}, which is the GPU here: use --train.device cpu (`scalegan evaluate`: --device cpu), or do without"
        )
    if cpu and train.precision == "fp16":
        raise UserError("train.precision fp16 needs a GPU: use --train.precision bf16 or fp32")
    if cpu and train.cuda_graphs:
        raise UserError("train.cuda_graphs needs a GPU, and here it is the CPU that trains: use --train.cuda_graphs false")
    return cpu


def check_gpus() -> None:
    """Raises `MachineError` for more processes here than GPUs: Accelerate gives two of them the same, which NCCL refuses."""
    processes = launcher.number("LOCAL_WORLD_SIZE") or (launcher.number("LOCAL_RANK") or 0) + 1
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise MachineError(
            f"{processes} processes were started on this machine and torch sees {gpus} GPU{'s' * (gpus > 1)} here: start one "
            "for each GPU (--num_processes counts those of all machines), and let every process see all GPUs of its machine"
        )


def make_accelerator(train: TrainConfig) -> Accelerator:
    """The accelerator of this process, for a settled `train.precision`.

    Raises `UserError` where the launcher and Accelerate disagree or the device lacks.
    """
    cpu = check_device(train)
    launched = launcher.world_size()
    if cpu and launched > 1:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else Accelerate makes a world of one out of each process
    elif launched > 1:
        check_gpus()
    if train.deterministic and not cpu:  # before NCCL's group is made, which looks at it only then
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    elif not cpu:
        torch.backends.cudnn.benchmark = True  # the fastest of its algorithms for each shape, and shapes never change
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
    if train.precision == "fp32":
        plain_float32()
    return accelerator


def control_group() -> dist.ProcessGroup | None:
    """A gloo group for flags and small facts, apart from the gradients' group; None with one process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=TIMEOUT)  # type: ignore[no-any-return]


def lost_another(error: RuntimeError) -> bool:
    """Whether a collective failed because another process has ended, or answers no more."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextmanager
def in_company() -> Iterator[None]:
    """Around what processes do together: where one is lost, or a GPU is full, all end in one line. Raises `UserError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        text = full_gpu(error)
        if launcher.rank():  # for which the command line does not speak, and process 0 may have room
            print(f"scalegan: error: process {launcher.rank()}: {text}", file=sys.stderr, flush=True)
        raise UserError(text) from None
    except RuntimeError as error:
        if not lost_another(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            "another process of this run has ended, and says why in its own output; or the network failed (GLOO_SOCKET_IFNAME "
            f"names the interface to use): {reason}"
        ) from None


def from_all(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Every process's value, by process. They travel as JSON: torch's own exchange of objects pickles them."""
    if group is None:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64)
    dist.all_gather(list(sizes), torch.tensor(len(text)), group=group)
    texts = torch.empty(len(sizes), int(sizes.max()), dtype=torch.uint8)
    own = torch.zeros_like(texts[0])
    own[: len(text)] = text
    dist.all_gather(list(texts), own, group=group)
    return [json.loads(bytes(text[:size].tolist())) for text, size in zip(texts, sizes.tolist(), strict=True)]


@contextmanager
def as_one(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Around what each process does by itself, such as reading: a `UserError` of any is raised on all of them at the end, so
    that it is told once and none is left waiting."""
    met = None
    try:
        yield
    except UserError as error:
        met = str(error)
    for number, problem in enumerate(from_all(met, group)):
        if problem is not None:
            raise UserError(f"process {number}: {problem}" if number else problem)


def together(group: dist.ProcessGroup | None) -> None:
    """Wait until every process is here."""
    if group is not None:
        dist.barrier(group=group)


def from_main(value: Any, group: dist.ProcessGroup | None) -> Any:
    """Process 0's value, of JSON's types, on every process; a `UserError` that it passes as value is raised on all."""
    value, problem = from_all((None, str(value)) if isinstance(value, UserError) else (value, None), group)[0]
    if problem is not None:
        raise UserError(problem)
    return value
