"""Where a shard that is not as its index says was damaged: which of its images is the first that is no more what it was."""

from __future__ import annotations

import contextlib
import os
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalegan.data.cache import Unreadable
from scalegan.data.decode import decode
from scalegan.data.index import TAR_BLOCK, Index, read_offsets
from scalegan.errors import UserError
from scalegan.files import check_handles

LOOKED_AT = 256 * 2**20
"""Bytes of a shard that are looked at before the search is given up: some seconds."""


def open_local(index: Index, number: int) -> int:
    """A file descriptor of a shard on this machine that is as long as it should be. Raises `Unreadable`."""
    shard = index.shards[number]
    path = Path(index.root) / shard.name
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        check_handles(error)
        raise Unreadable(f"shard {path} cannot be opened ({error.strerror}): copy or write the shards again") from None
    size = os.fstat(handle).st_size
    if size == shard.bytes:
        return handle
    try:
        problem = f"has {size} bytes, the index says {shard.bytes}{where_damaged(index, number, handle)}"
        raise Unreadable(f"shard {path} {problem}: copy or write the shards again")
    finally:
        os.close(handle)


def where_damaged(index: Index, number: int, handle: int) -> str:
    """` (first damaged: image 9 of 16, key '000041')`, or nothing where all images still decode."""
    shape = index.height, index.width, index.channels
    with contextlib.suppress(UserError, OSError):  # the table of offsets may be damaged too
        if found := first_damaged(handle, read_offsets(index, number), shape):
            return f" (first damaged: {found})"
    return ""


def first_damaged(handle: int, offsets: NDArray[np.int64], shape: tuple[int, int, int]) -> str:
    """`image 9 of 16, key '000041'`, from the file and its table int64 [samples, 3]; empty where all images still decode.

    A flipped byte in a PNG is always found, as it has checksums of its own; in a JPEG seldom.
    """
    size, before = os.fstat(handle).st_size, ""
    for number, (offset, length, _) in enumerate(offsets.tolist(), start=1):
        if offset > LOOKED_AT:
            return ""
        place = f"image {number} of {len(offsets)}"
        try:
            member = tarfile.TarInfo.frombuf(os.pread(handle, TAR_BLOCK, offset - TAR_BLOCK), "utf-8", "replace").name
        except tarfile.HeaderError:
            return f"{place}, after key {before!r}" if before else place
        key = member.rpartition("/")[2].partition(".")[0]
        if offset + length > size or not decodes(os.pread(handle, length, offset), shape):
            return f"{place}, key {key!r}"
        before = key
    return ""


def decodes(data: bytes, shape: tuple[int, int, int]) -> bool:
    try:
        decode(data, *shape)
    except Unreadable:
        return False
    return True
