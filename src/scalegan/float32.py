"""What float32 is multiplied with: GPUs since Ampere take TF32, of 10 bits, for convolutions unless they are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def plain_float32() -> None:
    """No TF32 in this process from now on."""
    torch.backends.cudnn.allow_tf32 = False  # of all that cuDNN does: what asks so afterwards fails where its parts disagree
    for switch in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):  # type: ignore[attr-defined]
        switch.fp32_precision = "ieee"


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Whatever the training around it has chosen: `float32` without autocast, TF32 or bfloat16 inside products; `bfloat16` by
    autocast, and all that this leaves in float32 likewise plain."""
    cpu, cuda = torch.backends.mkldnn, torch.backends.cudnn
    switches = (cuda.conv, torch.backends.cuda.matmul, cpu.conv, cpu.matmul)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
