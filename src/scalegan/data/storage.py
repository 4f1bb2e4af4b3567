"""Opens shards for reading by offset: where they lie, or from a checked copy when they lie far away.

Remote shards are fetched whole into a folder of at most `data.cache_gb`, under a lock that all processes of a machine
share, checked by sha256, and renamed into place; what was used longest ago makes room. Local shards are checked by
sha256 once a machine and file: a line that stands for its path, inode, size and time remembers it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import queue
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalegan.config import DataConfig
from scalegan.data.index import Index, is_remote, read_offsets
from scalegan.errors import UserError

TRIES = 4
PAUSE = 0.5  # seconds before the second try of a download, doubled before each further one
STALE = 3600.0  # seconds without a byte after which a half-fetched file is one that its process left behind
FETCHERS = 4  # downloads at once: enough to fill a link whose single streams are throttled, few for the server


class Unreadable(Exception):
    """A shard or an image that cannot be read, in one line; `data.on_error` decides what follows."""


class Storage:
    """The shards of one index. Safe to use from several threads and processes."""

    def __init__(self, index: Index, data: DataConfig) -> None:
        self.index = index
        self.remote = is_remote(index.root)
        self.cache = Path(data.cache).expanduser()
        self.limit = int(data.cache_gb * 1e9)
        self.folder = self.cache / f"scalegan-{index.sha256[:16]}" if self.remote else Path(index.root)

    def open(self, number: int) -> int:
        """A file descriptor of the shard, whole and checked. Raises `Unreadable`."""
        shard = self.index.shards[number]
        path = self.folder / shard.name
        if self.remote:
            return self._open_copy(path, shard.name, shard.sha256, shard.bytes)
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise Unreadable(f"shard {path} cannot be opened ({error.strerror}): copy or write the shards again") from None
        try:
            self._check(handle, path, shard.sha256, shard.bytes)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def offsets(self, number: int) -> NDArray[np.int64]:
        """int64 [samples, 3]: byte offset, length and label of each image of the shard. Raises `Unreadable`."""
        shard = self.index.shards[number]
        try:
            if not self.remote:
                return read_offsets(self.index, number)
            os.close(self._open_copy(self.folder / shard.offsets, shard.offsets, shard.offsets_sha256, None))
            return read_offsets(replace(self.index, root=str(self.folder)), number)
        except UserError as error:
            raise Unreadable(str(error)) from None
        except OSError as error:
            where = f"{self.index.root.rstrip('/')}/{shard.offsets}"
            raise Unreadable(f"{where} cannot be read ({error}): copy or write the shards again") from None

    def _check(self, handle: int, path: Path, sha256: str, size: int) -> None:
        state = os.fstat(handle)
        if state.st_size != size:
            raise Unreadable(f"shard {path} has {state.st_size} bytes, the index says {size}: copy or write the shards again")
        identity = f"{sha256} {path.resolve()} {os.uname().nodename} {state.st_dev} {state.st_ino} {size} {state.st_mtime_ns}"
        name = hashlib.sha256(identity.encode()).hexdigest()
        record = self.cache / "checked" / self.index.sha256
        if name in noted(record):
            return
        lock = record.with_name(f"{name}.lock")
        with locked(lock, required=False):  # so that one process of the machine reads it through, not all
            if name in noted(record):
                return
            if digest(handle) != sha256:
                raise Unreadable(f"shard {path} does not match its checksum, its bytes changed: copy or write the shards again")
            with contextlib.suppress(OSError):  # a cache that cannot be written costs the check again, nothing more
                with open(record, "a") as file:
                    file.write(f"{name}\n")
                lock.unlink(missing_ok=True)

    def _open_copy(self, path: Path, name: str, sha256: str, size: int | None) -> int:
        while True:
            if not path.exists():
                self._fetch(path, name, sha256, size)
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # it has just made room for another
                continue
            except OSError as error:
                raise UserError(f"{path} cannot be opened ({error.strerror}): set data.cache to a folder of your own") from None
            if size is not None and os.fstat(handle).st_size != size:  # cut by a crash of the machine
                os.close(handle)
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(PermissionError):  # of another user's copy; only that user's reads then count as use
                os.utime(handle)
            return handle

    def _fetch(self, path: Path, name: str, sha256: str, size: int | None) -> None:
        url = f"{self.index.root.rstrip('/')}/{name}"
        part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.{size or 0}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_name(f".{path.name}.lock")):
                if path.exists():  # another process fetched it while this one waited
                    return
                self._make_room(size or 0, name)
                try:
                    download(url, part, sha256)
                    os.replace(part, path)
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"no space left for {url} in {self.cache}: set data.cache or a smaller data.cache_gb") from None
            raise UserError(f"{self.cache} cannot be written ({error.strerror}): set data.cache to a folder that can") from None

    def _make_room(self, size: int, name: str) -> None:
        """Unlink the copies used longest ago until `size` more bytes fit; who has one open can still read it."""
        if size > self.limit:
            raise UserError(f"data.cache_gb {self.limit / 1e9:g} is less than the shard {name}: give at least {size / 1e9:.3g}")
        with locked(self.cache / ".scalegan.lock"):
            copies = [path for folder in self.cache.glob("scalegan-*") for path in folder.rglob("*") if path.suffix != ".lock"]
            held = sorted(filter(None, map(_used, copies)))
            free = self.limit - sum(copy_size for _, copy_size, _ in held)
            for used, copy_size, copy in held:
                if free >= size:
                    return
                if copy.suffix == ".part" and time.time() - used < STALE:
                    continue  # being fetched
                copy.unlink(missing_ok=True)
                free += copy_size


def noted(record: Path) -> set[str]:
    """The lines of a file that may not be there."""
    try:
        return set(record.read_text().split())
    except OSError:
        return set()


def _used(path: Path) -> tuple[float, int, Path] | None:
    """When a copy was last used, and its size: that which it will have, if it is being fetched."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(state.st_mode):
        return None
    size = int(path.suffixes[-2][1:]) if path.suffix == ".part" else state.st_size
    return state.st_mtime, size, path


def download(url: str, part: Path, sha256: str) -> None:
    """Fetch `url` into the file `part`, again when the connection breaks. Raises `Unreadable`, and `OSError` for the disk."""
    import fsspec.core

    problem = ""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE * 2 ** (number - 1))
        try:
            system, remote = fsspec.core.url_to_fs(url)
            system.get_file(remote, str(part))
        except (FileNotFoundError, PermissionError) as error:
            raise Unreadable(
                f"{url} cannot be fetched ({type(error).__name__}): put it back, or mend the access rights"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            problem = f"{type(error).__name__}: {error}"
        except Exception as error:  # fsspec hands on whatever its protocol's library raises
            problem = f"{type(error).__name__}: {error}"
        else:
            handle = os.open(part, os.O_RDONLY)
            try:
                os.fsync(handle)
                if digest(handle) == sha256:
                    return
            finally:
                os.close(handle)
            problem = "it does not match the checksum in the index"
    first_line = problem.splitlines()[0] if problem else ""
    raise Unreadable(f"{url} cannot be fetched, {TRIES} times tried: {first_line}")


def digest(handle: int) -> str:
    with open(handle, "rb", closefd=False, buffering=0) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, required: bool = True) -> Iterator[None]:
    """Hold a lock that all processes of this machine respect, freed by the system when its holder dies.

    On a file system without locks the block runs unlocked: files are renamed into place, so work is done twice at worst.
    `required=False` also puts up with a folder that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        if required:
            raise
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
        """Fetch these, in this order; those asked for in the last call are on their way already."""
        for shard in shards:
            if shard not in self.asked:
                self.waiting.put(shard)
        self.asked = set(shards)

    def close(self) -> None:
        self.closed = True
        for _ in range(FETCHERS):
            self.waiting.put(-1)

    def _run(self) -> None:
        while (shard := self.waiting.get()) >= 0 and not self.closed:
            with contextlib.suppress(Unreadable, UserError):
                self.storage.offsets(shard)
                os.close(self.storage.open(shard))
