"""Shards whose pictures tell their number and their label, and trainings that write down which of them they were given."""

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np

from helpers.runs import training
from scalegan.config import Config
from scalegan.data.index import Index
from scalegan.data.writer import Sample, write_shards

SIDE, CLASSES = 16, ("a", "b", "c")


def label(sample: int) -> int:
    return sample % len(CLASSES)


def encode(sample: int) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(sample).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[0, :3, 0] = sample // 256, sample % 256, label(sample)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make(folder: Path, count: int, shard_samples: int, bad: Collection[int] = (), first: int = 0) -> Index:
    """Pictures in the order of their numbers, from `first` on; those at the places `bad` are no pictures."""
    numbers = enumerate(range(first, first + count))
    samples = (Sample(b"no image" if place in bad else encode(n), "png", label(n)) for place, n in numbers)
    return write_shards(samples, folder, height=SIDE, width=SIDE, channels=3, classes=CLASSES, shard_samples=shard_samples)


def watched(config: Config) -> list[list[int]]:
    """`training`; what it saw: for every step, the numbers in this process's images, and that their labels are theirs."""
    from scalegan.steps import Game

    step, seen = Game.discriminator_step, []

    def discriminator_step(self, reals, images_seen):
        for real in reals:
            pixels = real.images.numpy().astype(int)
            assert np.array_equal(pixels[:, 0, 0, 2], real.labels.numpy())
            seen.append((pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]).tolist())
        return step(self, reals, images_seen)

    Game.discriminator_step = discriminator_step  # type: ignore[method-assign]
    assert training(config)
    return seen
