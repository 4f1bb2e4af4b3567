"""Helpers for the tests of sources: small files of each kind, and what comes out of them."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scalegan.data import shards_cli
from scalegan.data.index import Index, read_bytes, read_index, read_offsets
from scalegan.data.sources.base import Damaged, Request, Source
from scalegan.data.sources.convert import work
from scalegan.data.sources.detect import open_source
from scalegan.data.sources.encode import Encoded, Transform, decode


def photo(seed: int = 0, height: int = 10, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def scan(seed: int = 0, height: int = 10, width: int = 12) -> np.ndarray:
    return photo(seed, height, width)[..., 0]


def encoded(image: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def save(path: Path, image: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def pictures(
    source: Source, size: tuple[int, int] | None = None, channels: int | None = None
) -> tuple[list[Encoded], list[dict[str, Any]]]:
    """All images of a source in its own order, as they would be stored, and what was recorded."""
    transform = Transform(size, source.fit, channels)
    results = [work(task, transform) for task in source.tasks]
    if damaged := [clause for result in results for clause in result.damaged]:
        raise Damaged(*damaged)
    return [image for result in results for image in result.images], [result.facts for result in results if result.facts]


def opened(path: Path | str, **options: Any) -> tuple[list[Encoded], list[dict[str, Any]], Source]:
    source = open_source(Request(str(path), **options))
    return *pictures(source), source


def run(source: Path | str, out: Path, *options: str) -> Index:
    """`scalegan shards` in this process; the index that it wrote."""
    parser = argparse.ArgumentParser()
    shards_cli.add_arguments(parser)
    shards_cli.write(parser.parse_args([str(source), str(out), "--workers", "1", *options]))
    return read_index(out)


def stored(index: Index) -> list[tuple[np.ndarray, int]]:
    """Every image of some shards with its label."""
    return [
        (decode(read_bytes(index.root, shard.name, start, length)), label)
        for number, shard in enumerate(index.shards)
        for start, length, label in read_offsets(index, number).tolist()
    ]
