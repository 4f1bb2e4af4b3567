"""Small shards of images whose pixels tell which sample they are and which label they have."""

from __future__ import annotations

import gc
import io
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image

from scalegan.data.index import Index
from scalegan.data.writer import Sample, write_shards

HEIGHT, WIDTH = 6, 10
CLASSES = ("even", "odd", "third")


def picture(sample: int, channels: int = 3) -> np.ndarray:
    """uint8 [H, W, C]: noise of this sample's own; the first two pixels hold its number, the third its label."""
    pixels = np.random.default_rng(sample).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    pixels[0, :3, 0] = sample // 256, sample % 256, label(sample)
    return pixels


def label(sample: int) -> int:
    return sample % len(CLASSES)


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, kind, **options)
    return buffer.getvalue()


def make_shards(out: Path, samples: int = 100, shard_samples: int = 16, channels: int = 3, labelled: bool = True) -> Index:
    images = (Sample(encode(picture(n, channels)), "png", label(n) if labelled else -1) for n in range(samples))
    return write_shards(
        images,
        out,
        height=HEIGHT,
        width=WIDTH,
        channels=channels,
        classes=CLASSES if labelled else (),
        source="noise",
        shard_samples=shard_samples,
    )


def numbers(images: np.ndarray) -> np.ndarray:
    """[n, H, W, C] -> which samples these are."""
    return images[:, 0, 0, 0].astype(np.int64) * 256 + images[:, 0, 1, 0]


def damage(path: Path, position: int, length: int = 1) -> None:
    """Change bytes in the middle of a file; its size stays."""
    data = bytearray(path.read_bytes())
    data[position : position + length] = bytes(byte ^ 0xFF for byte in data[position : position + length])
    path.write_bytes(data)


def open_shards(end: str = "") -> int:
    """How many handles of shards this process holds; with " (deleted)", of those that have no name any more."""
    gc.collect()
    folder = "/proc/self/fd"
    targets = []
    for name in os.listdir(folder):
        try:
            targets.append(os.readlink(f"{folder}/{name}"))
        except FileNotFoundError:  # the handle of the listing itself
            continue
    return sum(target.endswith(end) and target.removesuffix(" (deleted)").endswith(".tar") for target in targets)


@contextmanager
def few_handles(more: int) -> Iterator[None]:
    """This process may open that many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    free = (number for number in count() if number not in taken)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, more, None)), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
