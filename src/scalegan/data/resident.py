"""All images decoded once and kept, as bytes, in the memory of the device: a batch is one `index_select`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import local

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan.config import DataConfig
from scalegan.data.index import Index
from scalegan.data.stream import StreamReader
from scalegan.launcher import cores

PIECE = 256  # images that one thread decodes before it takes the next piece
MOST_THREADS = 16  # the part of decoding that needs Python's lock leaves more of them idle

MOST_OPEN = 2  # shards that each thread keeps open: it reads them from one end to the other


def bytes_needed(index: Index) -> int:
    """Memory of the decoded images and their labels."""
    return index.samples * (index.height * index.width * index.channels + 8)


class Resident:
    def __init__(self, index: Index, data: DataConfig, device: torch.device) -> None:
        self.shape = (index.height, index.width, index.channels)
        images = np.empty((index.samples, *self.shape), np.uint8)
        labels = np.empty(index.samples, np.int64)
        self.unreadable, self.fetched = decode_all(index, data, images, labels)
        self.images = torch.from_numpy(images).flatten(1).to(device)
        """uint8 [samples, H * W * C]"""
        self.labels = torch.from_numpy(labels).to(device)
        """int64 [samples]"""

    def take(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """`samples` int64 [b] on the device -> uint8 [b, C, H, W], channels last in memory, and labels [b]."""
        images = self.images.index_select(0, samples).view(-1, *self.shape).permute(0, 3, 1, 2)
        return images, self.labels.index_select(0, samples)


def decode_all(
    index: Index, data: DataConfig, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> tuple[dict[int, str], int]:
    """Fill `images` [samples, H, W, C] and `labels` [samples].

    Returns what is wrong with the samples that cannot be read, and how many bytes of remote shards were fetched.
    """
    unreadable: dict[int, str] = {}
    own = local()
    readers: list[StreamReader] = []

    def work(first: int) -> None:
        if not hasattr(own, "reader"):
            own.reader = StreamReader(index, data, MOST_OPEN)
            readers.append(own.reader)
        samples = np.arange(first, min(first + PIECE, index.samples))
        pixels = own.reader.load(samples, out=images[first : first + PIECE])
        labels[samples] = pixels.labels
        unreadable.update({first + row: problem for row, problem in pixels.unreadable.items()})

    threads = min(cores(), MOST_THREADS)
    with ThreadPoolExecutor(threads, thread_name_prefix="scalegan-decode") as pool:
        try:
            for _ in pool.map(work, range(0, index.samples, PIECE)):
                pass
        except BaseException:  # one bad image is enough: do not decode the rest first
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            for reader in readers:
                reader.close()
    return unreadable, sum(reader.storage.cache.fetched for reader in readers)
