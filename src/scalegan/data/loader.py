"""Batches of real images on the device: which ones is a function of the images seen, so there is no loader state.

Two readers give identical batches: `resident` keeps all images decoded, `stream` reads them by offset in worker
processes. A training that goes on after 1,234,560 images asks for the batches from there, on as many processes and
workers as it has this time, and gets those that the first one would have got.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan import launcher
from scalegan.config import Config, DataConfig
from scalegan.data.cache import Unreadable
from scalegan.data.index import Index, is_remote, locate
from scalegan.data.order import Order, make_order, samples_at, shards_ahead, substitutes
from scalegan.data.resident import Resident, bytes_needed
from scalegan.data.storage import Prefetcher, Storage
from scalegan.data.stream import StreamReader, replace_rows
from scalegan.data.tolerance import BEFORE, Tolerance
from scalegan.data.workers import Decoder, Task, Workers, check_attempts
from scalegan.errors import UserError
from scalegan.sending import send

PLANNED = 4096  # images whose places are computed in one go, as the arithmetic costs the same for one and for hundreds
SORTED = 0.9  # share of its most common class from which a shard counts as sorted
PROBED = 8  # shards whose labels are looked at to tell


@dataclass
class Batch:
    """Real images: uint8 [b, C, H, W], channels last in memory, and labels int64 [b], -1 when unlabelled."""

    images: Tensor
    labels: Tensor


# --- single images, for evaluation


class Reader:
    """Any images by number, on the device; by offset whatever `data.reader` is, as what is wanted once is not worth keeping."""

    def __init__(self, index: Index, data: DataConfig, device: torch.device) -> None:
        self.samples = index.samples
        self.device = device
        self.tolerance = Tolerance(index, data)
        self.stream = StreamReader(index, data)

    def read(self, samples: NDArray[np.int64]) -> Batch:
        """The images `samples` [b]. Under `data.on_error` skip an unreadable one is replaced by the next that can be read."""
        samples = np.array(samples, np.int64)
        pixels = self.stream.load(samples)
        while pixels.unreadable:
            rows = np.array(list(pixels.unreadable))
            self.tolerance.note({int(samples[row]): problem for row, problem in pixels.unreadable.items()})
            samples[rows] = (samples[rows] + 1) % self.samples
            replace_rows(pixels, rows, self.stream.load(samples[rows]))
        return on_device(pixels.images, pixels.labels, self.device)

    @property
    def unreadable(self) -> int:
        """Images that could not be read so far, and were replaced."""
        return len(self.tolerance.unreadable)

    def close(self) -> None:
        self.stream.close()


def is_resident(index: Index, data: DataConfig) -> bool:
    """Whether the images are kept in memory; `UserError` if they are to be and do not fit."""
    needed = bytes_needed(index) / 1e9
    if data.reader == "resident" and needed > data.memory_gb:
        raise UserError(
            f"the decoded images take {needed:.2f} GB, data.memory_gb allows {data.memory_gb:g}: raise it, "
            "or read them from disk with --data.reader stream"
        )
    return data.reader == "resident" or (data.reader == "auto" and needed <= data.memory_gb)


def on_device(images: NDArray[np.uint8] | Tensor, labels: NDArray[np.int64] | Tensor, device: torch.device) -> Batch:
    """[b, H, W, C] in host memory -> a batch."""
    return Batch(send(images, device).permute(0, 3, 1, 2), send(labels, device))


# --- batches of a training


@dataclass(frozen=True)
class Plan:
    """Which slots of the global batches are ours: micro-batch m of process r is [(r * rounds + m) * size, + size)."""

    order: Order
    batch: int
    rounds: int
    size: int
    rank: int

    def ahead(self, images_seen: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Endlessly some steps at a time: images seen [k] and our samples [k, rounds * size] of each of k steps."""
        at_once = max(1, PLANNED // len(self.slots))
        for first in count(images_seen, at_once * self.batch):
            seen = first + np.arange(at_once) * self.batch
            yield seen, samples_at(self.order, seen[:, None], self.slots, self.batch)

    @cached_property
    def slots(self) -> NDArray[np.int64]:
        """Our slots of each global batch [rounds * size]."""
        own = self.rounds * self.size
        return self.rank * own + np.arange(own)

    @property
    def streams(self) -> range:
        """The streams of the `blocks` order that this process owns."""
        share = self.rounds * self.size * self.order.streams // self.batch
        return range(self.rank * share, (self.rank + 1) * share)


def batches(index: Index, config: Config, images_seen: int, rank: int, processes: int, device: torch.device) -> Batches:
    """Endless micro-batches of this process from `images_seen` on: `train.accumulate` of them make a step."""
    train, data = config.train, config.data
    order = make_order(data, index, train.seed)
    plan = Plan(order, train.batch, train.accumulate, train.batch // (processes * train.accumulate), rank)
    storage = Storage(index, data)
    if storage.remote:
        check_cache(storage, plan, images_seen)
    if order.kind == "blocks" and rank == 0:
        warn_of_sorted_shards(storage, order)
    kind = ResidentBatches if is_resident(index, data) else StreamBatches
    return kind(index, data, plan, images_seen, device)


def check_cache(storage: Storage, plan: Plan, images_seen: int) -> None:
    """Refuse a cache so small that the same shards would be fetched again and again."""
    shards, order = storage.index.shards, plan.order
    if order.kind == "full":
        needed = sum(shard.bytes for shard in shards)
        advice = "or read them in order, --data.order blocks"
    else:  # the window that is read and the one that is fetched meanwhile, on each process of this machine
        processes = launcher.number("LOCAL_WORLD_SIZE") or 1
        needed = processes * sum(shards[number].bytes for number in windows_at_hand(plan, images_seen))
        advice = "or give fewer data.streams or a smaller data.window"
    if needed > storage.cache.limit:
        raise UserError(
            f"data.order {order.kind} needs {needed / 1e9:.3g} GB of shards at hand "
            f"and data.cache_gb is {storage.cache.limit / 1e9:g}: raise it, {advice}"
        )


def warn_of_sorted_shards(storage: Storage, order: Order) -> None:
    """`blocks` mixes only what a window holds; of shards with one class each that are few classes."""
    index = storage.index
    most_common = max(index.class_counts, default=0) / index.samples
    if most_common == 0 or most_common > SORTED:
        return
    shares = []
    for number in np.unique(np.linspace(0, len(index.shards) - 1, PROBED).astype(int)).tolist():
        with suppress(Unreadable):  # told when its turn comes
            shares.append(np.bincount(storage.offsets(number)[:, 2]).max() / index.shards[number].samples)
    if shares and np.mean(shares) > SORTED:
        mixed = order.stride * len(index.shards) / index.samples
        warnings.warn(
            f"the shards of {index.root} are sorted by class: data.window {order.window} mixes about {max(1, round(mixed))} "
            "of them in each stream; raise it, or write the shards again with `scalegan shards`, which shuffles",
            stacklevel=2,
        )


class Batches(ABC):
    """Endless micro-batches; close it after use."""

    def __init__(self, index: Index, data: DataConfig, plan: Plan, device: torch.device) -> None:
        self.index = index
        self.data = data
        self.plan = plan
        self.device = device
        self.tolerance = Tolerance(index, data)

    def __iter__(self) -> Batches:
        return self

    @property
    @abstractmethod
    def fetched(self) -> int:
        """Bytes of remote shards that this process and its workers have fetched; another's copy in the cache costs none."""

    @abstractmethod
    def __next__(self) -> Batch: ...

    @abstractmethod
    def close(self) -> None: ...


class ResidentBatches(Batches):
    """From images in memory: a few thousand images are planned at once, so that a batch costs two `index_select`."""

    def __init__(self, index: Index, data: DataConfig, plan: Plan, images_seen: int, device: torch.device) -> None:
        super().__init__(index, data, plan, device)
        self.resident = Resident(index, data, device)
        self.tolerance.note(self.resident.unreadable)
        self.iterator = self._run(images_seen)

    @property
    def fetched(self) -> int:
        return self.resident.fetched

    def __next__(self) -> Batch:
        return next(self.iterator)

    def close(self) -> None:
        self.iterator.close()

    def _run(self, images_seen: int) -> Generator[Batch]:
        plan = self.plan
        found = self.tolerance.unreadable  # by any process: of another machine's shards others may be damaged
        bad = np.array(sorted(sample for sample, problem in found.items() if problem != BEFORE), np.int64)
        for seen, samples in plan.ahead(images_seen):
            if len(bad):
                self._fill(seen, samples, bad)
            for own in send(samples, self.device).view(-1, plan.size):
                yield Batch(*self.resident.take(own))

    def _fill(self, seen: NDArray[np.int64], samples: NDArray[np.int64], bad: NDArray[np.int64]) -> None:
        for attempt in count():
            steps, places = np.nonzero(np.isin(samples, bad))
            if not len(steps):
                return
            check_attempts(attempt, self.tolerance.unreadable[int(samples[steps[0], places[0]])])
            samples[steps, places] = substitutes(
                self.plan.order, seen[steps], self.plan.slots[places], self.plan.batch, attempt
            )


class StreamBatches(Batches):
    """From shards, by worker processes that decode `AHEAD` batches each in advance, or by this one."""

    def __init__(self, index: Index, data: DataConfig, plan: Plan, images_seen: int, device: torch.device) -> None:
        super().__init__(index, data, plan, device)
        self.prefetcher = Prefetcher(Storage(index, data)) if is_remote(index.root) else None
        self.first, self.given = images_seen, 0  # micro-batches that were handed out from there on
        self._want()
        decoder = Decoder(index, data, plan.order, plan.batch)
        tasks = self._tasks(images_seen)
        self.workers = Workers(decoder, tasks, data.workers, plan.size, pin=device.type == "cuda") if data.workers else None
        self.iterator = iter(self.workers or map(decoder.decode, tasks))
        self.fetched_by_workers = 0

    @property
    def fetched(self) -> int:
        return self.fetched_by_workers + (self.prefetcher.storage.cache.fetched if self.prefetcher else 0)

    def __next__(self) -> Batch:
        decoded = next(self.iterator)
        if decoded.failure:
            raise UserError(decoded.failure)
        self.tolerance.note(decoded.unreadable)
        self.tolerance.lost = decoded.lost | self.tolerance.lost  # another one, as the old one may be under way to a worker
        self.fetched_by_workers += decoded.fetched
        self.given += 1
        self._want()
        return on_device(decoded.images, decoded.labels, self.device)

    def close(self) -> None:
        if self.workers:
            self.workers.close()
        if self.prefetcher:
            self.prefetcher.close()

    def _want(self) -> None:
        """Have at hand the windows of the oldest step that is not handed out whole, which may still be read, and the next.

        Not those of the newest task: it is made so far ahead that workers may yet want shards of the windows before.
        """
        if self.prefetcher and self.plan.order.kind == "blocks":
            steps = self.given // self.plan.rounds
            self.prefetcher.want(windows_at_hand(self.plan, self.first + steps * self.plan.batch))

    def _tasks(self, images_seen: int) -> Iterator[Task]:
        plan = self.plan
        for seen, samples in plan.ahead(images_seen):
            if self.prefetcher and plan.order.kind == "full":
                shards, _ = locate(self.index, samples.ravel())
                self.prefetcher.want(list(dict.fromkeys(shards.tolist())))
            for start, row in zip(seen.tolist(), samples, strict=True):
                for turn in range(plan.rounds):
                    part = slice(turn * plan.size, (turn + 1) * plan.size)
                    yield Task(start, plan.slots[part], row[part], self.tolerance.lost)


def windows_at_hand(plan: Plan, images_seen: int) -> list[int]:
    """The shards of the windows that our streams of the `blocks` order are in, then those of the next ones."""
    shards: list[int] = shards_ahead(plan.order, images_seen, plan.streams, plan.order.stride + 1).tolist()
    return shards
