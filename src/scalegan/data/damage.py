"""Where a shard that is not as its index says was damaged: which of its images is the first that is no more what it was."""

from __future__ import annotations

import os
import tarfile

import numpy as np
from numpy.typing import NDArray

from scalegan.data.cache import Unreadable
from scalegan.data.decode import decode
from scalegan.data.index import TAR_BLOCK

LOOKED_AT = 256 * 2**20
"""Bytes of a shard that are looked at before the search is given up: some seconds."""


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
