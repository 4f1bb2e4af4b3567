"""IDX files, the format of MNIST and its relatives, gzipped or not: images and labels in two files that belong together."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalegan.data.sources.base import (
    Picture,
    Request,
    Source,
    choose_classes,
    chunks,
    listed,
    one_line,
    top_files,
    unpacked,
    wanted_split,
)
from scalegan.errors import UserError

IMAGES = re.compile(r"^(?P<front>.*)images(?P<mark>[-.]idx)3(?P<end>-ubyte(\.gz)?)$")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FASHION_LABELS = frozenset({
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
})  # fmt: skip
"""sha256 of the labels of Fashion-MNIST, train and test: the files themselves do not say whose they are."""
BEST_GZIP = 1032
"""No gzip file shrinks its content further, so a header that claims more lies."""
MOST_BYTES = 4 * 2**30
"""That a gzipped file may unpack to, all of it into memory; the largest known, of EMNIST, has 0.55 GB."""


@dataclass(frozen=True)
class Arrays:
    """Some images that are in memory already."""

    name: str
    first: int
    images: NDArray[np.uint8]
    """[n, H, W] or [n, H, W, 3]."""
    labels: NDArray[np.int64]

    def open(self) -> tuple[Iterable[Picture], dict[str, Any]]:
        numbered = enumerate(zip(self.images, self.labels, strict=True), self.first)
        return (Picture(f"{self.name}, image {i}", image, int(label)) for i, (image, label) in numbered), {}


def array_tasks(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[Arrays]:
    return [Arrays(name, part.start, images[part], labels[part]) for part in chunks(len(images), 512)]


def is_idx(name: str) -> bool:
    return IMAGES.match(name) is not None


def split_of(name: str) -> str:
    """Of MNIST's file names: `train-*` and `t10k-*`; EMNIST and others say `train` or `test` somewhere."""
    return "test" if re.search("t10k|test", name) else "train"


def idx(request: Request) -> Source:
    request.refuse("IDX files", "axis", "slices", "labels")
    found = image_files(top_files(request.folder) if request.folder else request.files)
    if not found:
        raise UserError(f"{request.path} is no file of images: give the folder, or a file such as train-images-idx3-ubyte.gz")
    by_split: dict[str, list[Path]] = {}
    for path in found:
        by_split.setdefault(split_of(path.name), []).append(path)
    split = wanted_split(request, sorted(by_split), request.path)
    chosen = [path for name, paths in sorted(by_split.items(), reverse=True) if split in ("all", name) for path in paths]
    if any(len(paths) > 1 for paths in by_split.values()):
        names = [str(path) for path in found]
        raise UserError(f"{request.path} holds several data sets ({listed(names)}): give one of the files, or keep them apart")
    pairs = [(path, *read_pair(path)) for path in chosen]
    known = class_names(np.concatenate([labels for _, _, labels, _ in pairs]), [digest for *_, digest in pairs])
    classes = choose_classes(known, request.classes, request.path)
    number = np.full(len(known), -1, np.int64)
    number[[known.index(name) for name in classes]] = np.arange(len(classes))
    tasks: list[Arrays] = []
    for path, images, labels, _ in pairs:
        new = number[labels]
        tasks += array_tasks(str(path), images[new >= 0], new[new >= 0])
    return Source("idx", tasks, sum(len(task.labels) for task in tasks), classes=classes, details={"split": split})


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Those that hold images, sorted and without what is there twice."""
    return [Path(name) for name in unpacked(str(path) for path in paths if is_idx(path.name))]


def class_names(labels: NDArray[np.int64], digests: list[str]) -> tuple[str, ...]:
    if FASHION_LABELS.issuperset(digests):
        return FASHION
    return tuple(str(n) for n in range(int(labels.max()) + 1))


def read_pair(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], str]:
    """Images, labels, and the sha256 of the latter."""
    match = IMAGES.match(path.name)
    assert match is not None
    names = [f"{match['front']}labels{match['mark']}1{end}" for end in (match["end"], "-ubyte.gz", "-ubyte")]
    label_path = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    if label_path is None:
        raise UserError(f"{path.with_name(names[0])} is missing: it holds the labels of {path.name}")
    images, labels = read_idx(path, 3), read_idx(label_path, 1)
    if len(images) != len(labels):
        raise UserError(f"{path} has {len(images)} images and {label_path.name} {len(labels)} labels: fetch both again")
    return images, labels.astype(np.int64), hashlib.sha256(labels.tobytes()).hexdigest()


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An array of unsigned bytes with that many dimensions."""
    header = 4 + 4 * dimensions
    try:
        packed = path.stat().st_size
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(header)
            if len(start) < header or start[:4] != bytes([0, 0, 8, dimensions]):
                raise UserError(f"{path} is no IDX file of unsigned bytes with {dimensions} dimensions: fetch it again")
            shape = struct.unpack(f">{dimensions}I", start[4:])
            size = int(np.prod(shape, dtype=object))
            if size > packed * (BEST_GZIP if path.suffix == ".gz" else 1):
                raise UserError(f"{path} is cut: {packed} bytes cannot hold {' x '.join(map(str, shape))}; fetch it again")
            if path.suffix == ".gz" and size > MOST_BYTES:
                raise UserError(f"{path} unpacks to {size:,} bytes, more than any data set known: if you trust it, gunzip it")
            data = file.read(size + 1)
    except UserError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): fetch it again") from None
    if len(data) != size or not size:
        held = "more" if len(data) > size else f"{len(data)}"
        raise UserError(f"{path} is damaged: {' x '.join(map(str, shape))} bytes announced, {held} there; fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
