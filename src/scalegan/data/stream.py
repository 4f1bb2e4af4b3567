"""Reads images from shards by byte offset: any sample in any order, with one `pread` and one decode."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalegan.config import DataConfig
from scalegan.data.cache import Unreadable
from scalegan.data.decode import decode
from scalegan.data.index import TAR_BLOCK, Index, locate
from scalegan.data.storage import Storage
from scalegan.errors import UserError

MOST_OPEN = 128  # shards kept open: the usual limit of a process is 1,024 files
MOST_TABLES = 1024  # tables of offsets kept in memory, 24 bytes an image


@dataclass
class Pixels:
    """Decoded images in host memory; what could not be read keeps its row, which then holds anything."""

    images: NDArray[np.uint8]
    """[n, H, W, C]"""
    labels: NDArray[np.int64]
    """[n], -1 when unlabelled"""
    unreadable: dict[int, str]
    """Row -> what is wrong with it; empty unless unreadable images are skipped."""


def replace_rows(pixels: Pixels, rows: NDArray[np.int64], others: Pixels) -> None:
    """Put the images of `others` [k] into `rows` [k] of `pixels`, which are unreadable then if those are."""
    pixels.images[rows], pixels.labels[rows] = others.images, others.labels
    pixels.unreadable = {int(rows[row]): problem for row, problem in others.unreadable.items()}


def is_evicted(handle: int) -> bool:
    """Whether the cache has dropped this copy; another machine with the same cache on NFS may have, and nobody can read it."""
    try:
        return os.fstat(handle).st_nlink == 0
    except OSError:
        return True


class StreamReader:
    """For one thread of one process; it holds files open, so it is made where it is used."""

    def __init__(self, index: Index, data: DataConfig, most_open: int = MOST_OPEN) -> None:
        self.handles: OrderedDict[int, int] = OrderedDict()
        self.most_open = most_open
        self.index = index
        self.skip = data.on_error == "skip"
        self.storage = Storage(index, data)
        self.tables: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self.wanted: frozenset[int] = frozenset()
        """Shards that the load in progress reads; it goes through them by number."""
        self.broken: dict[int, str] = {}
        """Shard -> what is wrong with it, of those that are lost as a whole: none of its images is read any more."""

    def load(self, samples: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> Pixels:
        """Images and labels of `samples` [n], decoded into `out` [n, H, W, C] where given.

        An image that cannot be read raises `UserError`, or is reported in `unreadable` when `data.on_error` is skip.
        """
        index = self.index
        shape = (index.height, index.width, index.channels)
        images = np.empty((len(samples), *shape), np.uint8) if out is None else out
        labels = np.full(len(samples), -1, np.int64)
        unreadable: dict[int, str] = {}
        shards, rows = locate(index, samples)
        self.wanted = frozenset(shards.tolist())
        by_place = np.lexsort((rows, shards)).tolist()  # front to back, as disks like it
        for at, shard, row in zip(by_place, shards[by_place].tolist(), rows[by_place].tolist(), strict=True):
            try:
                self._refuse_broken(shard)
                offset, length, label = self._table(shard)[row].tolist()
                data = self._read(shard, offset, length)
                try:
                    images[at] = decode(data, *shape)
                except Unreadable as problem:
                    raise Unreadable(f"image {self._member(shard, offset)} of shard {self._name(shard)} {problem}") from None
                labels[at] = label
            except Unreadable as problem:
                if not self.skip:
                    way_out = "train without such images, --data.on_error skip --override_resume"
                    raise UserError(f"{problem}; or {way_out}") from None
                unreadable[at] = str(problem)
        return Pixels(images, labels, unreadable)

    def close(self) -> None:
        while self.handles:
            os.close(self.handles.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def _read(self, shard: int, offset: int, length: int) -> bytes:
        try:
            try:
                data = os.pread(self._handle(shard), length, offset)
            except OSError as error:
                if error.errno != errno.ESTALE or not self.storage.remote:
                    raise
                os.close(self.handles.pop(shard))  # another machine has made room in a cache on NFS that both use
                data = os.pread(self._handle(shard), length, offset)
        except OSError as error:
            raise self._lost(shard, f"shard {self._name(shard)} cannot be read ({error.strerror})") from None
        if len(data) < length:
            raise self._lost(shard, f"shard {self._name(shard)} was cut while it was in use")
        return data

    def _handle(self, shard: int) -> int:
        handle = self.handles.get(shard)
        if handle is not None:
            self.handles.move_to_end(shard)
            return handle
        try:
            handle = self.storage.open(shard)
        except Unreadable as problem:
            raise self._lost(shard, str(problem)) from None
        if self.storage.remote:
            self._close_evicted(shard)
        self.handles[shard] = handle
        if len(self.handles) > self.most_open:
            os.close(self.handles.popitem(last=False)[1])
        return handle

    def _close_evicted(self, shard: int) -> None:
        """Close copies that the cache has dropped, which stay on the disk as long as they are open.

        Those that the load has yet to come to after `shard` are kept: they would be fetched anew.
        """
        for other, handle in list(self.handles.items()):
            if (other < shard or other not in self.wanted) and is_evicted(handle):
                os.close(self.handles.pop(other))

    def _table(self, shard: int) -> NDArray[np.int64]:
        table = self.tables.get(shard)
        if table is not None:
            self.tables.move_to_end(shard)
            return table
        try:
            table = self.storage.offsets(shard)
        except Unreadable as problem:
            raise self._lost(shard, str(problem)) from None
        self.tables[shard] = table
        if len(self.tables) > MOST_TABLES:
            self.tables.popitem(last=False)
        return table

    def _refuse_broken(self, shard: int) -> None:
        if shard in self.broken:
            raise Unreadable(self.broken[shard])

    def _lost(self, shard: int, problem: str) -> Unreadable:
        self.broken[shard] = problem
        if shard in self.handles:
            os.close(self.handles.pop(shard))
        return Unreadable(problem)

    def _member(self, shard: int, offset: int) -> str:
        """The name of an image, from the header in front of it."""
        return self._read(shard, offset - TAR_BLOCK, 100).split(b"\0", 1)[0].decode("utf-8", "replace")

    def _name(self, shard: int) -> str:
        return f"{self.index.root.rstrip('/')}/{self.index.shards[shard].name}"
