"""Copies of remote shards on a local disk: fetched once a machine, checked, and no more of them than fit.

A copy is fetched under a lock that all processes of the machine respect, checked by sha256 and renamed into place, so
what has its name is whole. What was used longest ago makes room. Nothing else in the folder is touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scalegan.errors import UserError
from scalegan.files import check_handles, no_room

TRIES = 4
PAUSE = 0.5  # seconds before the second try of a download, doubled before each further one
CONNECT, SILENCE = 30.0, 60.0  # seconds in which an HTTP server has to answer, and to send the next bytes
WAIT = 0.1  # seconds between looks for room that other downloads hold
STALE = 3600.0  # seconds without a byte after which a half-fetched file was left behind, where no lock tells
PREFIX = "scalegan-"  # of the folders that are ours
OURS = f"{os.uname().nodename}-"  # of half-fetched files: the locks of other machines may not be seen here


class Unreadable(Exception):
    """A shard or an image that cannot be read, in one line; `data.on_error` decides what follows."""


class NotGiven(Unreadable):
    """What lies far away did not come: the fault may be of the way to it, and none of the data."""


class TooLong(Exception):
    """More bytes come than the index says."""


class Cache:
    """At most `limit` bytes of files below `folder`/scalegan-*. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit
        self._sizes: list[int] = []  # of what was fetched; threads append

    @property
    def fetched(self) -> int:
        """Bytes fetched through this object."""
        return sum(self._sizes)

    def open(self, url: str, place: str, size: int, sha256: str) -> int:
        """A file descriptor of the copy of `url` that is kept as `place`, fetched if need be. Raises `Unreadable`."""
        path = self.folder / f"{PREFIX}{place}"
        while True:
            if not path.exists():
                self._fetch(url, path, size, sha256)
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # it has just made room for another
                continue
            except OSError as error:
                check_handles(error)
                raise UserError(f"{path} cannot be opened ({error.strerror}): set data.cache to a folder of your own") from None
            if os.fstat(handle).st_size != size:  # cut by a crash of the machine
                os.close(handle)
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(PermissionError):  # of another user's copy; only that user's reads then count as use
                os.utime(handle)
            return handle

    def touch(self, place: str) -> None:
        """What was used longest ago makes room: this was used now, if it is there."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / f"{PREFIX}{place}")

    def _fetch(self, url: str, path: Path, size: int, sha256: str) -> None:
        if size > self.limit:
            raise UserError(f"data.cache_gb {self.limit / 1e9:g} is less than the shard {url}: give at least {size / 1e9:.3g}")
        part = path.with_name(f".{path.name}.{OURS}{os.getpid()}-{threading.get_native_id()}.{size}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(lock := path.with_name(f".{path.name}.lock")):
                if path.exists():  # another process fetched it while this one waited
                    return
                try:
                    while not self._reserve(part, size, lock):
                        time.sleep(WAIT)
                    download(url, part, size, sha256)
                    with self._counting():  # who counts meanwhile could see neither of its names
                        os.replace(part, path)
                    self._sizes.append(size)
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            check_handles(error)
            if no_room(error):
                raise UserError(f"no space left for {url} in {self.folder}: set data.cache, or less data.cache_gb") from None
            raise UserError(f"{self.folder} cannot be written ({error.strerror}): set another data.cache") from None

    def _counting(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder / f".{PREFIX}lock")

    def _reserve(self, part: Path, size: int, lock: Path) -> bool:
        """Unlink the copies used longest ago until `size` bytes fit, and make `part`, whose name holds the room for it.

        We hold `lock`. False if other downloads hold too much. Who has a copy open can still read it after it is unlinked.
        """
        with self._counting():
            ours = (path for folder in self.folder.glob(f"{PREFIX}*") for path in folder.rglob("*") if path.suffix != ".lock")
            held = sorted(filter(None, map(last_use, ours)))
            free = self.limit - sum(copy_size for _, copy_size, _ in held)
            for used, copy_size, copy in held:
                if free >= size:
                    break
                if copy.suffix == ".part" and not abandoned(copy, used, lock):
                    continue
                copy.unlink(missing_ok=True)
                free += copy_size
            if free >= size:
                part.touch()
            return free >= size


def last_use(path: Path) -> tuple[float, int, Path] | None:
    """When a copy was last used, and its size: that which it will have, if it is being fetched. None for a folder."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(state.st_mode):
        return None
    size = int(path.suffixes[-2][1:]) if path.suffix == ".part" else state.st_size
    return state.st_mtime, size, path


def abandoned(part: Path, used: float, held: Path) -> bool:
    """Whether who fetched `part`, last written at `used`, has ended: the lock of its copy is then free, or is ours, `held`."""
    front, ours, _ = part.name.rpartition(f".{OURS}")
    if ours:
        lock = part.with_name(f"{front}.lock")
        try:
            with open(lock, "rb+", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return lock == held
        except OSError:  # a file system without locks, or another user's
            pass
    return time.time() - used >= STALE


def tries(remote: bool) -> Iterator[int]:
    """0, 1 and so on, with a pause before each further try to read something far away; once for what is here."""
    for number in range(TRIES if remote else 1):
        if number:
            time.sleep(PAUSE * 2 ** (number - 1))
        yield number


def far(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    import fsspec.core

    options = {}
    if url.startswith("http"):
        import aiohttp

        # Without its limit of 5 minutes for an answer with all its bytes, which a large shard over a thin line exceeds.
        options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=CONNECT, sock_read=SILENCE)}}
    return fsspec.core.url_to_fs(url, **options)  # type: ignore[no-any-return]


def download(url: str, part: Path, size: int, sha256: str) -> None:
    """Fetch the `size` bytes of `url` into the file `part`, again when the connection breaks.

    Raises `NotGiven`, `Unreadable` for what is missing or other than the index says, and `OSError` for the disk.
    """
    from fsspec.callbacks import Callback

    def stop(_: int | None, fetched: int) -> None:  # what is announced may be the length of a page that tells of an error
        if fetched > size:
            raise TooLong

    failed = f"{url} cannot be fetched, {TRIES} times tried"
    problem: Unreadable = NotGiven(failed)
    for _ in tries(remote=True):
        try:
            system, remote = far(url)
            system.get_file(remote, str(part), callback=Callback(hooks={"size": stop}))
        except TooLong:
            problem = Unreadable(f"{failed}: there is more of it than the {size} bytes that the index says")
            continue
        except FileNotFoundError:
            raise Unreadable(f"{url} is missing: put it back, or mend the access rights") from None
        except PermissionError:  # of all that is there, where a key has expired
            raise NotGiven(f"{url} may not be read: put it back, or mend the access rights") from None
        except Exception as error:  # fsspec hands on whatever its protocol's library raises
            check_handles(error)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            problem = NotGiven(f"{failed}: {one_line(error)}")
            continue
        with open(part, "rb", buffering=0) as file:
            os.fsync(file)
            if digest(file.fileno()) == sha256:
                return
        problem = Unreadable(f"{failed}: it does not match the checksum in the index")
    raise problem


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".splitlines()[:1])


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
