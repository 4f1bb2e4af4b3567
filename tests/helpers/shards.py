"""Small labelled shards of synthetic images: a bright disc (class 0) or square (class 1) on a dark ground."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from scalegan.data.index import Index
from scalegan.data.writer import Sample, write_shards


def make_images(count: int, height: int, width: int, channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [count, H, W, C] and labels [count]."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    images = np.empty((count, height, width, channels), np.uint8)
    labels = generator.integers(0, 2, count)
    for i, label in enumerate(labels):
        y, x = generator.uniform(0.35, 0.65, 2) * (height, width)
        radius = generator.uniform(0.2, 0.35) * min(height, width)
        far = np.hypot(rows - y, columns - x) if label == 0 else np.maximum(abs(rows - y), abs(columns - x))
        ground, figure = generator.uniform(0, 80, channels), generator.uniform(150, 255, channels)
        images[i] = np.where((far < radius)[..., None], figure, ground) + generator.uniform(0, 5, (height, width, channels))
    return images, labels


def make_shards(
    out: Path, count: int = 200, height: int = 16, width: int = 16, channels: int = 3, *, labelled: bool = True, seed: int = 0
) -> Index:
    images, labels = make_images(count, height, width, channels, seed)
    samples = [Sample(png(image), "png", int(label) if labelled else -1) for image, label in zip(images, labels, strict=True)]
    classes = ("disc", "square") if labelled else ()
    return write_shards(samples, out, height=height, width=width, channels=channels, classes=classes, shard_samples=70)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
