"""The processes that evaluate together: who does which images, and the few facts that all of them must share.

Facts travel as sums of tensors and as JSON, so nothing received is ever unpickled. Features stay where they were made: they
visit the other processes a block at a time, so that no process ever holds more than its own and one block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scalegan import launcher
from scalegan.errors import GivenUp, UserError, full_gpu

VISITING = 1024
"""Rows of one block that visits all processes."""


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

    @classmethod
    def of_world(cls) -> Team:
        """All processes of the default group."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

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

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """Around what a process does by itself: a `UserError` or `GivenUp` of any is raised on all of them at the end. So is a
        full GPU, which is none of the training's."""
        error = None
        try:
            yield
        except UserError as met:
            error = met
        except torch.OutOfMemoryError as met:
            error = UserError(full_gpu(met))
        self.agree(error)

    def agree(self, error: UserError | None) -> None:
        """Raise on every process what one of them met, so that none is left waiting for it."""
        if self.processes == 1:
            if error is not None:
                raise error
            return
        met = torch.zeros(self.processes, dtype=torch.int64)
        met[self.rank] = 0 if error is None else 2 if isinstance(error, GivenUp) else 1
        met = add_up(met)
        if met.any():
            source = int(met.argmax())  # a notice to stop before an error, which comes again when the run goes on
            raise (GivenUp if met[source] == 2 else UserError)(self._from(source, str(error)))

    def look(self, find: Callable[[], Path]) -> Path:
        """What `find` finds, on every process. Process 0 looks first, then the first of each machine, so that a download
        happens once in every folder; what one meets, all raise."""
        for looks in (self.first, launcher.number("LOCAL_RANK") == 0):
            with self.as_one():
                if looks:
                    find()
        with self.as_one():
            path = find()
        return path

    def add_up(self, *tensors: Tensor) -> list[Tensor]:
        """The sums over all processes of tensors, in one reduction: float64, in the tensors' shapes and on their devices."""
        if self.processes == 1:
            return [tensor.double() for tensor in tensors]
        packed = add_up(torch.cat([tensor.double().flatten() for tensor in tensors]))
        ends = list(accumulate(tensor.numel() for tensor in tensors))
        return [packed[end - tensor.numel() : end].reshape(tensor.shape) for end, tensor in zip(ends, tensors, strict=True)]

    def by_process(self, *values: int) -> list[list[int]]:
        """Numbers of each process, each as a list by process."""
        table = torch.zeros(len(values), self.processes, dtype=torch.int64)
        table[:, self.rank] = torch.tensor(values)
        whole: list[list[int]] = (table if self.processes == 1 else add_up(table)).tolist()
        return whole

    def together(self, values: Tensor) -> Tensor:
        """Scalars or short rows [n, ...] of all processes, in order of the processes: float64. Not meant for features."""
        [counts] = self.by_process(len(values))
        whole = values.new_zeros(sum(counts), *values.shape[1:], dtype=torch.float64)
        first = sum(counts[: self.rank])
        whole[first : first + len(values)] = values
        return self.add_up(whole)[0]

    def visits(self, *parts: Tensor) -> Iterator[Tensor]:
        """Blocks of the rows of every process in turn, to be seen by all at the same time: float64 [at most 1024, w].

        A row is made of the `parts` [n, ...], side by side. A process may have none; `w` must be the same everywhere.
        """
        width, device = sum(part.shape[1] for part in parts), parts[0].device
        for source, count in enumerate(self.by_process(len(parts[0]))[0]):
            for first in range(0, count, VISITING):
                size = min(VISITING, count - first)
                if self.rank == source:
                    block = torch.cat([part[first : first + size].to(device, torch.float64) for part in parts], 1)
                else:
                    block = torch.empty(size, width, dtype=torch.float64, device=device)
                if self.processes > 1:
                    block = block.to(_carrier())
                    dist.broadcast(block, source)
                yield block.to(device)
