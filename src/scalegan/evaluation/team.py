"""The processes that evaluate together: who does which images, and the few facts that all of them must share.

Facts travel as sums of tensors and as JSON, so nothing received is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scalegan.errors import UserError


def add_up(tensor: Tensor, group: Any = None) -> Tensor:
    """The sum over all processes, on the tensor's device; the tensor itself is left alone."""
    if not dist.is_initialized():
        return tensor
    total = tensor.to(_carrier(), copy=True)
    dist.all_reduce(total, group=group)
    return total.to(tensor.device)


def _carrier() -> torch.device:
    """The device whose tensors the default process group can carry."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@dataclass(frozen=True)
class Team:
    rank: int = 0
    processes: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def blocks(self, total: int, size: int) -> Iterator[tuple[int, int]]:
        """(first, count) of this process' share of 0 to total: aligned blocks, dealt in turn, the same for any number of
        processes; every index once."""
        for first in range(self.rank * size, total, self.processes * size):
            yield first, min(size, total - first)

    def from_first(self, value: Any) -> Any:
        """The value of process 0, a JSON one, on every process."""
        if self.processes == 1:
            return value
        return self._from(0, value)

    def _from(self, source: int, value: Any) -> Any:
        text = json.dumps(value).encode() if self.rank == source else b""
        size = int(add_up(torch.tensor(len(text))))
        content = torch.zeros(size, dtype=torch.uint8)
        if self.rank == source:
            content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return json.loads(add_up(content).numpy().tobytes())

    def agree(self, error: UserError | None) -> None:
        """Raise on every process what one of them met, so that none is left waiting for it."""
        if self.processes == 1:
            if error is not None:
                raise error
            return
        met = torch.zeros(self.processes, dtype=torch.int64)
        met[self.rank] = error is not None
        met = add_up(met)
        if met.any():
            source = int(met.argmax())
            raise UserError(self._from(source, str(error)))
