"""Writes samples as tar shards with an index, all or nothing.

The shards grow in a hidden folder beside the target, are flushed to disk, and appear under their name by one rename.
Plain `webdataset.WebDataset` reads them: members `<key>.jpg` or `<key>.png`, then `<key>.cls` where labelled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scalegan.data.index import INDEX_NAME, TAR_BLOCK, Index, Shard, holds_shards, index_text, make_index
from scalegan.errors import UserError
from scalegan.files import flush, no_room


@dataclass(frozen=True)
class Sample:
    """One encoded image, ready to be stored."""

    data: bytes
    suffix: Literal["jpg", "png"]
    label: int = -1
    """-1 when unlabelled; a data set is labelled throughout or not at all."""


def write_shards(
    samples: Iterable[Sample],
    out: Path,
    *,
    height: int,
    width: int,
    channels: int,
    classes: tuple[str, ...] = (),
    source: str = "",
    licence: str = "",
    details: dict[str, Any] | None = None,
    shard_samples: int = 1000,
    force: bool = False,
    extra: Callable[[Path, Index], None] | None = None,
) -> Index:
    """Store `samples`, in the order given, as the folder `out`, which appears whole or not at all.

    `extra(folder, index)` may add files before the folder gets its name. Sizes are the caller's word: nothing is decoded.
    """
    with new_folder(out, force=force) as folder:
        index = fill_folder(
            folder, samples, shard_samples, height=height, width=width, channels=channels, classes=classes,
            source=source, licence=licence, details=details or {},
        )  # fmt: skip
        if extra:
            extra(folder, index)
    return replace(index, root=str(out))


def fill_folder(
    folder: Path, samples: Iterable[Sample], shard_samples: int, *, classes: tuple[str, ...], **content: Any
) -> Index:
    """Write shards, offsets and index into an existing folder."""
    shards: list[Shard] = []
    low, high = (0, len(classes) - 1) if classes else (-1, -1)
    counts = [0] * len(classes)
    rest = iter(samples)
    key = 0
    while (first := next(rest, None)) is not None:
        tar = _Tar(folder, len(shards), key)
        for sample in chain([first], islice(rest, shard_samples - 1)):
            if not low <= sample.label <= high:
                raise ValueError(f"label {sample.label} outside {low} to {high}")
            tar.add(sample)
            if classes:
                counts[sample.label] += 1
        shards.append(tar.close())
        key += shards[-1].samples
    if not shards:
        raise UserError("no images: nothing was written")
    index = make_index(str(folder), shards=tuple(shards), classes=classes, class_counts=tuple(counts), **content)
    write_file(folder / INDEX_NAME, index_text(index).encode())
    return index


class _Tar:
    """One shard that grows: webdataset's own writer, over a file that notes its checksum, and the offsets of the images."""

    def __init__(self, folder: Path, number: int, first_key: int) -> None:
        from webdataset import TarWriter  # here, as it loads torch

        self.sink = _Sink(folder / f"shard-{number:06d}.tar")
        # No time and no owner, so that equal images give equal shards.
        self.tar = TarWriter(self.sink, encoder=False, mtime=0, user="", group="", mode=0o644)
        self.key = first_key
        self.rows: list[tuple[int, int, int]] = []

    def add(self, sample: Sample) -> None:
        members: dict[str, bytes] = {sample.suffix: sample.data}
        before = self.tar.tarstream.offset
        if sample.label >= 0:
            members["cls"] = b"%d" % sample.label  # goes before the image: members are sorted by name
            before += 2 * TAR_BLOCK
        self.rows.append((before + TAR_BLOCK, len(sample.data), sample.label))
        self.tar.write({"__key__": f"{self.key:09d}"} | members)
        self.key += 1

    def close(self) -> Shard:
        self.tar.close()
        self.sink.close()
        buffer = io.BytesIO()
        np.save(buffer, np.array(self.rows, np.int64), allow_pickle=False)
        path = self.sink.path
        offsets = path.with_suffix(".npy")
        write_file(offsets, buffer.getvalue())
        offsets_digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        return Shard(path.name, len(self.rows), self.sink.bytes, self.sink.digest.hexdigest(), offsets.name, offsets_digest)


class _Sink:
    """A file to write to from one end to the other, with its length and sha256."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def write_file(path: Path, data: bytes | bytearray) -> None:
    """Write and flush to disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def check_free(out: Path, *, force: bool) -> None:
    """`UserError` if `out` may not be written: it exists, and is no shards that `--force` replaces."""
    if _is_mount(out):
        raise UserError(
            f"{out} is a mount point, which nothing can take the place of: give a folder in it, as {out / 'shards'}"
        )
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if not force:
        raise UserError(f"{out} exists already: give another folder, or --force to replace it")
    if not holds_shards(out):
        raise UserError(f"{out} holds something else than shards: --force replaces only shards; give another folder")


def _is_mount(folder: Path) -> bool:
    """Also of a part of the same file system, which only the system's table tells."""
    try:
        table = Path("/proc/self/mountinfo").read_text()
    except FileNotFoundError:  # macOS
        return folder.is_mount()
    return any(line.split()[4] == os.fspath(folder).replace(" ", "\\040") for line in table.splitlines())


@contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its place when the block ends well, and vanishes otherwise.

    A link stays, and it is the folder it points at that is written.
    """
    out = out.resolve()
    check_free(out, force=force)
    partial = out.parent / f".{out.name}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = open(partial / "lock", "w")  # noqa: SIM115 - held until the folder is published
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}: {error.filename}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is being written by another process: wait for it, or give another folder") from None
        except OSError:
            pass  # a file system without locks: two writers of one folder are then the user's to avoid
        try:
            _empty(partial)
            yield partial
            _publish(partial, out, force=force)
        except OSError as error:
            _remove(partial)
            if no_room(error):
                raise UserError(f"no space left on the disk of {out.parent}: free some, or write elsewhere") from None
            raise
        except BaseException:
            _remove(partial)
            raise
    finally:
        lock.close()


def _empty(partial: Path) -> None:
    """What a killed run left is of no use to this one."""
    for path in partial.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _publish(partial: Path, out: Path, *, force: bool) -> None:
    flush(partial)
    check_free(out, force=force)
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    with _deaf():
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(partial, out)
        except OSError:
            with contextlib.suppress(OSError):
                os.rename(old, out)
            raise
        (out / "lock").unlink()  # not before: whoever came in between would have made a new one, and emptied the folder
        flush(out.parent)
        shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    with _deaf():
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C and SIGTERM are not heard within: they come too late to undo it, or it is the undoing."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: installed by no Python code
