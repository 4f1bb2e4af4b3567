"""Processes that read and decode batches ahead of the training.

They come from a fork server, not from a fork of the training process (`data.start_method fork`): that one runs threads (gloo,
NCCL, autograd, W&B) whose locks a fork would copy in whatever state they are in, and a CUDA context that no child may use. The
server loads this module once, so that the workers start at once and share its memory.

Batches come through a ring of places in shared memory that are used again and again: handing each over in memory of its own, as
DataLoader does with tensors, costs about as much as decoding small images, for every page is new to both processes.

Slurm sends its signals to every process of a job step. A worker that died of one would take the training down before
it can save, so the workers, and the server, are born with them blocked.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from scalegan.config import DataConfig
from scalegan.data.blocked import SIGNALS, blocked_signals
from scalegan.data.index import Index
from scalegan.data.order import Order, substitutes
from scalegan.data.stream import StreamReader, replace_rows
from scalegan.errors import UserError

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

AHEAD = 4  # batches that each worker may be ahead: covers a pause of the training of some hundred milliseconds
MOST_ATTEMPTS = 64  # substitutes tried for one slot; so many fail only where nothing of a stream can be read
NEWS = 5.0  # seconds in which the server tells of a worker's end


@dataclass
class Task:
    """One micro-batch: the slots [b] of the global batch that starts at `images_seen`, and the samples [b] in them."""

    images_seen: int
    slots: NDArray[np.int64]
    samples: NDArray[np.int64]
    lost: dict[int, str] = field(default_factory=dict)
    """Shard -> what is wrong with it, of those that any process has given up: all leave them out."""


@dataclass
class Decoded:
    """Images uint8 [b, H, W, C] and labels int64 [b] in host memory, or why there are none."""

    images: NDArray[np.uint8] | Tensor
    labels: NDArray[np.int64] | Tensor
    unreadable: dict[int, str] = field(default_factory=dict)
    """Sample -> what is wrong with it; its slot holds another image with its own label."""
    lost: dict[int, str] = field(default_factory=dict)
    """Shard -> what is wrong with it, of those that are left out as a whole."""
    failure: str = ""
    fetched: int = 0
    """Bytes of remote shards that had to be fetched for it."""
    place: tuple[int, int] = (0, 0)
    """Worker and turn: where in the ring the images of a worker lie, which sends none."""


NONE = np.empty(0, np.uint8)


class Decoder:
    """Task -> images. Opens its reader in the process where it is first used."""

    def __init__(self, index: Index, data: DataConfig, order: Order, batch: int) -> None:
        self.index = index
        self.data = data
        self.order = order
        self.batch = batch
        self.reader: StreamReader | None = None

    def decode(self, task: Task, out: NDArray[np.uint8] | None = None) -> Decoded:
        """The images of `task`, in `out` [b, H, W, C] where given."""
        self.reader = self.reader or StreamReader(self.index, self.data)
        cache = self.reader.storage.cache
        before = cache.fetched
        self.reader.broken |= task.lost
        try:
            decoded = self._decode(self.reader, task, out)
            decoded.fetched, decoded.lost = cache.fetched - before, self.reader.broken.copy()
            return decoded
        except UserError as error:  # as a value: DataLoader would wrap a raised one in the worker's traceback
            return Decoded(NONE, np.empty(0, np.int64), failure=str(error))

    def _decode(self, reader: StreamReader, task: Task, out: NDArray[np.uint8] | None) -> Decoded:
        samples = task.samples.copy()
        pixels = reader.load(samples, out)
        unreadable: dict[int, str] = {}
        for attempt in count():
            if not pixels.unreadable:
                break
            rows = np.array(list(pixels.unreadable))
            unreadable |= {int(samples[row]): problem for row, problem in pixels.unreadable.items()}
            check_attempts(attempt, pixels.unreadable[int(rows[0])])
            samples[rows] = substitutes(self.order, task.images_seen, task.slots[rows], self.batch, attempt)
            replace_rows(pixels, rows, reader.load(samples[rows]))
        return Decoded(pixels.images, pixels.labels, unreadable)


def check_attempts(attempt: int, problem: str) -> None:
    if attempt == MOST_ATTEMPTS:
        raise UserError(f"no image can be found in place of one that cannot be read, {attempt} were tried: {problem}")


class Ring:
    """Places for the batches of workers, in memory that they share with the training process: uint8 [b, H, W, C] each.

    A worker is asked for a batch just before that of `AHEAD` turns ago is taken from its place. So with one place more than
    that none is written to before it was read, and nobody waits for a lock.
    """

    def __init__(self, context: BaseContext, workers: int, shape: tuple[int, ...]) -> None:
        self.shape = (workers, AHEAD + 1, *shape)
        self.memory = context.RawArray(ctypes.c_uint8, math.prod(self.shape))

    def __getitem__(self, place: tuple[int, int]) -> NDArray[np.uint8]:
        places: NDArray[np.uint8] = np.ndarray(self.shape, np.uint8, memoryview(self.memory))
        images: NDArray[np.uint8] = places[place]
        return images


class RingDecoder(Dataset[Decoded]):
    """What a worker runs: decodes its tasks into its places of the ring, one after the other, and sends which one it was."""

    def __init__(self, decoder: Decoder, ring: Ring) -> None:
        self.decoder = decoder
        self.ring = ring
        self.turn = 0

    def __getitem__(self, task: Task) -> Decoded:
        worker = get_worker_info()
        assert worker
        place = (worker.id, self.turn)
        self.turn = (self.turn + 1) % (AHEAD + 1)
        decoded = self.decoder.decode(task, self.ring[place])
        return replace(decoded, images=NONE, place=place)


class Workers:
    """Iterates over the decoded tasks, in order, whatever the number of processes."""

    def __init__(self, decoder: Decoder, tasks: Iterator[Task], processes: int, size: int, *, pin: bool) -> None:
        """`size` [b]: the images of a task; `pin`: into memory from which copies to a GPU do not wait."""
        index = decoder.index
        context = multiprocessing.get_context(decoder.data.start_method)
        if decoder.data.start_method == "forkserver":
            context.set_forkserver_preload([__name__])
        self.ring = Ring(context, processes, (size, index.height, index.width, index.channels))
        self.pin = pin
        loader = DataLoader(
            RingDecoder(decoder, self.ring),
            batch_size=None,
            sampler=Tasks(tasks),
            num_workers=processes,
            collate_fn=unchanged,  # type: ignore[arg-type] # torch expects lists, which batch_size=None does not make
            worker_init_fn=settle,
            multiprocessing_context=context,
            prefetch_factor=AHEAD,
            generator=torch.Generator(),  # of a seed that nothing uses; the global one must not move
        )
        others = set(multiprocessing.active_children())
        try:
            with blocked_signals():
                self.iterator: Iterator[Decoded] | None = iter(loader)
        except OSError as error:
            if error.errno is not None:
                raise
            raise UserError(  # Python's own: the path of a socket has little room
                f"loader processes cannot be started under {tempfile.gettempdir()} ({error}): set TMPDIR to a shorter path, or "
                "read without them, --data.workers 0"
            ) from None
        self.processes: set[BaseProcess] = set(multiprocessing.active_children()) - others

    def __iter__(self) -> Iterator[Decoded]:
        return self

    def __next__(self) -> Decoded:
        assert self.iterator is not None
        try:
            decoded = next(self.iterator)
        except (RuntimeError, OSError, EOFError):  # which of them depends on what the worker was at
            connection.wait([process.sentinel for process in self.processes], timeout=NEWS)
            dead = [process.pid for process in self.processes if not process.is_alive()]
            if not dead:
                raise
            raise UserError(
                f"a loader process (pid {dead[0]}) ended: it was killed, or ran out of memory or of /dev/shm, where batches "
                "wait; free some, or read with fewer processes: --data.workers 0"
            ) from None
        if not decoded.failure:
            decoded.images, decoded.labels = self._copy(self.ring[decoded.place]), self._copy(decoded.labels)
        return decoded

    def _copy(self, values: NDArray[Any] | Tensor) -> Tensor:
        values = torch.as_tensor(values)
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=self.pin).copy_(values)

    def close(self) -> None:
        self.iterator = None  # DataLoader asks its workers to end, and waits some seconds
        for process in self.processes:
            if process.is_alive():  # amid a long read, and deaf to SIGTERM
                process.kill()


class Tasks:
    """A sampler, to DataLoader: what it hands to the workers one after the other."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[Task]:
        return self.tasks


def unchanged(decoded: Decoded) -> Decoded:
    return decoded


def settle(worker: int) -> None:
    """What a worker does first: be deaf to the signals for the training, and end when that ends, however it does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """DataLoader watches the parent of its workers, which is the fork server; that one lives as long as they do."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
