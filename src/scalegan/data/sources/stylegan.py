"""StyleGAN's data sets: a zip, or the folder it unpacks to, with images and `dataset.json`, which holds the labels."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from scalegan.data.index import safe_name
from scalegan.data.sources.base import Picture, Request, Source, choose_classes, chunks, is_hidden, one_line, walk
from scalegan.data.sources.folders import file_tasks, is_image
from scalegan.errors import UserError

LABELS = "dataset.json"
MOST_BYTES = 1 << 30
"""Of one file in an archive, unpacked."""


@dataclass(frozen=True)
class Members:
    """Some images of a zip."""

    archive: str
    names: tuple[str, ...]
    labels: tuple[int, ...]

    def open(self) -> tuple[Iterable[Picture], dict[str, Any]]:
        return self._pictures(), {}

    def _pictures(self) -> Iterator[Picture]:
        archive = open_zip(self.archive)
        for name, label in zip(self.names, self.labels, strict=True):
            yield Picture(f"{self.archive}:{name}", read_member(archive, self.archive, name), label)


@lru_cache(maxsize=1)
def open_zip(path: str) -> zipfile.ZipFile:
    """One open archive a process: reading its table of contents takes longer than a task."""
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is no readable zip ({one_line(error)}): fetch it again") from None


def read_member(archive: zipfile.ZipFile, path: str, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > MOST_BYTES:
        raise UserError(f"{path}: {name} unpacks to {info.file_size:,} bytes, more than any image: leave it out")
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, OSError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: {name} cannot be unpacked ({one_line(error)}): fetch the archive again") from None


def stylegan(request: Request) -> Source:
    request.refuse("a StyleGAN data set", "axis", "slices", "labels", "split")
    path = request.folder or request.one_file()
    names, text = _folder(path) if request.folder else _zip(str(path))
    images = sorted(name for name in names if is_image(name))
    if not images:
        arrays = any(name.endswith(".npy") for name in names)
        raise UserError(f"{path} holds {'latents (.npy), and ' if arrays else ''}no images: give the archive of images")
    table = parse_labels(text, f"{path}:{LABELS}")
    if not table:
        if request.classes:
            raise UserError(f"--classes: {path} has no labels")
        return Source("stylegan", _tasks(path, images, [-1] * len(images)), len(images))
    for name in images:
        if name not in table:
            raise UserError(f"{path}: {LABELS} has no label for {name}")
    classes = choose_classes([str(n) for n in range(max(table.values()) + 1)], request.classes, str(path))
    number = {int(name): label for label, name in enumerate(classes)}
    kept = [name for name in images if table[name] in number]
    if not kept:
        raise UserError(f"{path} has no images of --classes {','.join(classes)}")
    labels = [number[table[name]] for name in kept]
    return Source("stylegan", _tasks(path, kept, labels), len(kept), classes=classes)


def _tasks(path: Path, names: list[str], labels: list[int]) -> list[Any]:
    if path.is_dir():
        return list(file_tasks(path, names, labels))
    return [Members(str(path), tuple(names[part]), tuple(labels[part])) for part in chunks(len(names))]


def _folder(path: Path) -> tuple[list[str], bytes]:
    return [name for name in walk(path) if name != LABELS], (path / LABELS).read_bytes()


def _zip(path: str) -> tuple[list[str], bytes]:
    archive = open_zip(path)
    names = [safe_name(name) for name in archive.namelist() if not name.endswith("/")]
    names = [name for name in names if not any(map(is_hidden, name.split("/")))]
    if LABELS not in names:
        if inside := next((name for name in names if name.endswith(f"/{LABELS}")), None):
            folder = inside.removesuffix(f"/{LABELS}")
            raise UserError(f"{path} has its {LABELS} in the folder {folder}: unpack it and give that folder")
        raise UserError(f"{path} has no {LABELS}, so it is no StyleGAN data set: unpack it and give the folder")
    if len(set(names)) < len(names):
        raise UserError(f"{path} holds several files of one name: pack it again")
    return names, read_member(archive, path, LABELS)


def parse_labels(text: bytes, where: str) -> dict[str, int]:
    """`{"labels": [["00000/img00000000.png", 6], ...]}` -> label by name; empty where `labels` is null."""
    try:
        pairs = [(safe_name(name), label) for name, label in json.loads(text)["labels"] or []]
    except (ValueError, TypeError, LookupError):
        hint = "if another program wrote it, say what SOURCE is by --kind, such as --kind folders"
        raise UserError(f'{where} must hold {{"labels": [["name.png", 0], ...]}} or null for none: {hint}') from None
    table: dict[str, int] = {}
    for name, label in pairs:
        if type(label) is not int or not 0 <= label < 1_000_000:
            raise UserError(f"{where}: the label of {name} is {label!r}: only class numbers from 0 are read")
        if table.setdefault(name, label) != label:
            raise UserError(f"{where}: {name} has two labels, {table[name]} and {label}")
    return table
