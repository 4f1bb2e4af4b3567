"""CIFAR-10's binary archive: records of one label and 3 x 32 x 32 bytes. Read by name from the tar, never unpacked to disk."""

from __future__ import annotations

import re
import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalegan.data.index import safe_name
from scalegan.data.sources.base import Request, Source, choose_classes, one_line, top_files, wanted_split
from scalegan.data.sources.idx import Arrays, array_tasks
from scalegan.errors import UserError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCH = re.compile(r"^(?P<split>data|test)_batch(_\d+)?\.bin$")
MEMBERS = frozenset({"test_batch.bin", *(f"data_batch_{number}.bin" for number in range(1, 6))})
"""Of the archive: each once, and no other batch."""
CIFAR_FOLDER = "cifar-10-batches-bin"
"""That the archive unpacks to."""
RECORD = 1 + 3 * 32 * 32
BATCH_BYTES = 10_000 * RECORD
MOST_MEMBERS = 100
"""Of any kind; the archive has nine. The tar reader remembers every one, and empty ones pack to nothing."""


def is_cifar_archive(name: str) -> bool:
    """By its name; unpacked by gunzip, by that of the original: other tars of these images are WebDatasets."""
    return re.match(r"^cifar.*\.(tar\.gz|tgz)$|^cifar-100?-(binary|python|matlab)\.tar$", name.lower()) is not None


def cifar(request: Request) -> Source:
    request.refuse("CIFAR-10", "axis", "slices", "labels")
    batches = _batches(request)
    there = sorted({split_of(name) for name in batches})
    if not there:
        raise UserError(
            f"{request.path} holds no data_batch_1.bin: give cifar-10-binary.tar.gz (the Python version is pickled)"
        )
    split = wanted_split(request, there, request.path)
    classes = choose_classes(NAMES, request.classes, request.path)
    number = np.full(len(NAMES), -1, np.int64)
    number[[NAMES.index(name) for name in classes]] = np.arange(len(classes))
    tasks: list[Arrays] = []
    for name, data in sorted(batches.items()):
        if split in ("all", split_of(name)):
            images, labels = parse(data, name)
            new = number[labels]
            tasks += array_tasks(name, images[new >= 0], new[new >= 0])
    return Source("cifar10", tasks, sum(len(task.labels) for task in tasks), classes=classes, details={"split": split})


def split_of(name: str) -> str:
    return "test" if name.startswith("test") else "train"


def parse(data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [n, 32, 32, 3] and labels int64 [n]."""
    if not data or len(data) % RECORD:
        raise UserError(f"{name} has {len(data)} bytes, no multiple of {RECORD}: it is cut; fetch the archive again")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(NAMES):
        raise UserError(f"{name} has a label {labels.max()}: it is no batch of CIFAR-10")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), labels


def _batches(request: Request) -> dict[str, bytes]:
    """Contents of the batch files by their own names."""
    folder = request.folder
    if folder:
        inside = [folder, folder / CIFAR_FOLDER]
        paths = [path for place in inside if place.is_dir() for path in top_files(place)]
        files = [path for path in paths if BATCH.match(path.name)]
        if files:
            return {path.name: path.read_bytes() for path in files}
        archives = [path for path in paths if is_cifar_archive(path.name)]
        return _from_tar(archives[0]) if archives else {}
    paths = request.files
    if not all(BATCH.match(path.name) for path in paths):
        return _from_tar(request.one_file())
    found: dict[str, bytes] = {}
    for path in paths:
        if path.name in found:
            raise UserError(f"{request.path} matches {path.name} twice: give one folder")
        found[path.name] = path.read_bytes()
    return found


def _from_tar(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for number, member in enumerate(archive, start=1):
                if number > MOST_MEMBERS:
                    raise UserError(f"{path} has more than {MOST_MEMBERS} members: it is no archive of CIFAR-10")
                safe_name(member.name)
                name = member.name.rsplit("/", 1)[-1]
                if not BATCH.match(name):
                    continue
                if not member.isreg():
                    raise UserError(f"{path}: {member.name} is a link or a device, no file: fetch the archive again")
                if name not in MEMBERS or name in found:
                    raise UserError(f"{path}: {member.name} is {'there twice' if name in found else 'no batch of CIFAR-10'}")
                if member.size > BATCH_BYTES:
                    raise UserError(f"{path}: {member.name} has {member.size:,} bytes, more than any batch ({BATCH_BYTES:,})")
                file = archive.extractfile(member)
                assert file is not None
                found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): fetch it again") from None
    return found
