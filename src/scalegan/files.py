"""Writing a file so that a reader, or a crash, sees the old content or the new, never a part; and what tells it was whole."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scalegan.errors import MachineError, UserError


def no_room(error: OSError) -> bool:
    """Whether it is for want of room that something could not be written."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_handles(error: Exception) -> None:
    """`MachineError` if it is for want of file handles that something could not be opened: that is no fault of its own."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise MachineError(f"{error.strerror} at once: allow more with `ulimit -n 4096` before the command") from None


@contextmanager
def if_there_is_room() -> Iterator[None]:
    """Around writing what can be done without: a full disk ends it here, and any other error goes on."""
    try:
        yield
    except OSError as error:
        if not no_room(error):
            raise


@contextmanager
def if_possible(what: str) -> Iterator[None]:
    """Around writing what can be done without: an error of the disk ends it here, in one line that begins with `what`."""
    try:
        yield
    except OSError as error:
        print(f"scalegan: {what} could not be written ({error.strerror or error}): going on without", file=sys.stderr)


class Lines:
    """A file that lines are appended to. Those that a full disk has no room for wait, and are tried again with the next.

    With `sync` a line is on the disk when `append` returns, and not only with the system.
    """

    def __init__(self, path: Path, *, sync: bool) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (as long as this object)
        self._sync = sync
        self._waiting = b""

    @property
    def empty(self) -> bool:
        return not self._waiting and self._file.tell() == 0

    def append(self, text: str) -> None:
        """Write to the disk, or keep for the next time where there is no room."""
        self._waiting += text.encode()
        with if_there_is_room():
            self._write()
            if self._sync:
                os.fsync(self._file.fileno())

    def settle(self) -> bool:
        """Another try for what waits; whether all is on the disk now, with `sync` or without."""
        try:
            self._write()
            os.fsync(self._file.fileno())
        except OSError as error:
            if not no_room(error):
                raise
            return False
        return True

    def _write(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Also a second time."""
        if not self._file.closed:
            self.append("")
            self._file.close()


def try_out(path: Path, option: str) -> None:
    """Raises `UserError` where the file `path`, which `option` names, could not be written later."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # A file would take its place: with the rights of root, as in a container, that of /dev/stdout for all programs.
        if path.exists() and (not path.is_file() or path.parent.samefile("/dev")):
            raise UserError(f"{option} {path} is a pipe or a device: name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written ({error.strerror}): name another file") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, rename. A failure leaves what was there before and no temporary file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """Of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have the disk write what it was given of a file, or of the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
