"""Opens the shards of an index for reading by offset: where they lie, or from a checked copy when they lie far away.

Local shards are checked by sha256 once a machine and file: a line in the cache folder that stands for path, inode, size
and time remembers it. So a shard that was changed, exchanged or copied wrongly is noticed before an image of it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from scalegan.config import DataConfig
from scalegan.data import cache
from scalegan.data.cache import Cache, NotGiven, Unreadable, digest, locked, one_line
from scalegan.data.damage import open_local, where_damaged
from scalegan.data.index import INDEX_NAME, Index, is_remote, read_bytes, read_offsets
from scalegan.errors import UserError
from scalegan.files import check_handles

OUTAGE = 600.0  # seconds that a server is waited for which gives nothing: less than train.hang_minutes lets a step take
LONGEST_PAUSE = 30.0  # seconds between two looks whether it is back
FETCHERS = 4  # downloads at once: enough to fill a link whose single streams are throttled, few for the server

T = TypeVar("T")


class Storage:
    """The shards of one index. Safe to use from several threads and processes."""

    def __init__(self, index: Index, data: DataConfig) -> None:
        self.index = index
        self.remote = is_remote(index.root)
        self.cache = Cache(Path(data.cache).expanduser(), data.cache_gb * 1e9)
        self.record = self.cache.folder / "checked" / index.sha256
        self._noted: set[str] = set()
        self._noted_bytes = 0  # of the record, which other processes add to, that we have read

    def where(self, name: str) -> str:
        return f"{self.index.root.rstrip('/')}/{name}"

    def open(self, number: int) -> int:
        """A file descriptor of the shard, whole and checked. Raises `Unreadable`, and `UserError` for a server that is gone."""
        if self.remote:
            return self._insist(lambda: self.fetch(number))
        handle = open_local(self.index, number)
        try:
            self._check(handle, number)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def fetch(self, number: int) -> int:
        """`open` of a remote shard, without waiting for a server that gives nothing: raises `NotGiven` then."""
        shard = self.index.shards[number]
        return self.cache.open(self.where(shard.name), self._place(number), shard.bytes, shard.sha256)

    def keep(self, number: int) -> None:
        """Count the copy of a remote shard as just used, if there is one: it is wanted, though nobody may have read it yet."""
        self.cache.touch(self._place(number))

    def _place(self, number: int) -> str:
        return f"{self.index.sha256[:16]}/{self.index.shards[number].name}"

    def offsets(self, number: int) -> NDArray[np.int64]:
        """int64 [samples, 3]: byte offset, length and label of each image of the shard. Raises as `open` does."""
        return self._insist(lambda: self._offsets(number)) if self.remote else self._offsets(number)

    def _offsets(self, number: int) -> NDArray[np.int64]:
        problem = ""
        for _ in cache.tries(self.remote):
            try:
                return read_offsets(self.index, number)
            except UserError as error:
                raise Unreadable(str(error)) from None
            except Exception as error:  # fsspec hands on whatever its protocol's library raises
                check_handles(error)
                problem = one_line(error)
        raise NotGiven(f"{self.where(self.index.shards[number].offsets)} cannot be read ({problem}): copy the shards again")

    def _insist(self, read: Callable[[], T]) -> T:
        """`read()`, again where it raises `NotGiven`.

        Which images a batch holds must not depend on when a server was out of reach. So what it does not give is unreadable
        only where it gave the index, as it did at the start, before the last tries and after them; else it is waited for, and
        `UserError` ends the run, whatever `data.on_error`, after `OUTAGE`.
        """
        began, pause, serves, told = 0.0, cache.PAUSE, False, False
        while True:
            try:
                return read()
            except NotGiven as problem:
                began = began or time.monotonic()
                served, serves = serves, self._serves()
                if served and serves:
                    raise
                if time.monotonic() - began > OUTAGE:
                    raise UserError(
                        f"{self.index.root} has given nothing for {OUTAGE / 60:g} minutes ({problem}): when it does again, the "
                        "same command goes on from the last checkpoint"
                    ) from None
                if not serves:
                    if not told:
                        print(f"scalegan: waiting for {self.index.root}: {problem}", file=sys.stderr, flush=True)
                        told = True
                    time.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)

    def _serves(self) -> bool:
        try:
            return bool(read_bytes(self.index.root, INDEX_NAME))
        except Exception:  # fsspec hands on whatever its protocol's library raises
            return False

    def _is_noted(self, name: str) -> bool:
        """Whether the record, which may not be there, has this line."""
        if name not in self._noted:
            with contextlib.suppress(OSError), open(self.record, "rb") as file:
                file.seek(self._noted_bytes)
                lines = file.read().decode()
                whole = lines[: lines.rfind("\n") + 1]  # another process may be writing one
                self._noted.update(whole.split())
                self._noted_bytes += len(whole)
        return name in self._noted

    def _check(self, handle: int, number: int) -> None:
        shard, state = self.index.shards[number], os.fstat(handle)
        path, sha256, size = Path(self.index.root) / shard.name, shard.sha256, shard.bytes
        identity = f"{sha256} {path.resolve()} {os.uname().nodename} {state.st_dev} {state.st_ino} {size} {state.st_mtime_ns}"
        name = hashlib.sha256(identity.encode()).hexdigest()
        if self._is_noted(name):
            return
        lock = self.record.with_name(f"{name}.lock")
        with locked(lock, required=False):  # so that one process of the machine reads it through, not all
            if self._is_noted(name):
                return
            try:
                found = digest(handle)
            except OSError as error:
                raise Unreadable(f"shard {path} cannot be read ({error.strerror}): copy or write the shards again") from None
            if found == sha256:
                with contextlib.suppress(OSError):  # a cache that cannot be written costs the check again, nothing more
                    with open(self.record, "a") as file:
                        file.write(f"{name}\n")
                    lock.unlink(missing_ok=True)
                return
        problem = f"does not match its checksum, its bytes changed{where_damaged(self.index, number, handle)}"
        raise Unreadable(f"shard {path} {problem}: copy or write the shards again")


class Prefetcher:
    """Daemon threads that fetch remote shards before they are needed; what goes wrong is told by whoever then opens one."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.asked: set[int] = set()
        self.waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.closed = False
        for _ in range(FETCHERS):
            threading.Thread(target=self._run, daemon=True, name="scalegan-fetch").start()

    def want(self, shards: list[int]) -> None:
        """Fetch these, in this order; those asked for in the last call are on their way, and make no room for the others."""
        before, self.asked = self.asked, set(shards)  # first of all, as a thread drops what nobody has asked for
        for shard in shards:
            if shard in before:
                self.storage.keep(shard)
        for shard in shards:
            if shard not in before:
                self.waiting.put(shard)

    def close(self) -> None:
        self.closed = True
        for _ in range(FETCHERS):
            self.waiting.put(-1)

    def _run(self) -> None:
        while (shard := self.waiting.get()) >= 0 and not self.closed:
            if shard not in self.asked:  # its turn comes so late that it would only take the room of others
                continue
            with contextlib.suppress(Unreadable, UserError):
                os.close(self.storage.fetch(shard))
