"""Existing WebDatasets: tars of `<key>.jpg|jpeg|png|webp` with `<key>.cls` or `<key>.json`; ours, with an index, among them."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalegan.data.held_out import held_out_of
from scalegan.data.index import TAR_BLOCK, holds_shards, read_index, read_offsets, safe_name
from scalegan.data.sources.base import (
    Picture,
    Request,
    Source,
    choose_classes,
    chunks,
    is_hidden,
    number_order,
    one_line,
    top_files,
)
from scalegan.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
MOST_LABEL_BYTES = 1 << 20
PACKED = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0", "zstandard": b"\x28\xb5\x2f\xfd"}
"""Programs, and the bytes that their files begin with."""


@dataclass(frozen=True)
class Place:
    """Where one image lies."""

    name: str
    start: int
    length: int
    label: int


@dataclass(frozen=True)
class Members:
    """Some images of a tar, read by offset."""

    archive: str
    places: tuple[Place, ...]

    def open(self) -> tuple[Iterable[Picture], dict[str, Any]]:
        return self._pictures(), {}

    def _pictures(self) -> Iterator[Picture]:
        try:
            with open(self.archive, "rb") as file:
                for place in self.places:
                    content = os.pread(file.fileno(), place.length, place.start)
                    yield Picture(f"{self.archive}:{place.name}", content, place.label)
        except OSError as error:
            raise UserError(f"{self.archive} cannot be read: {error.strerror}") from None


def webdataset(request: Request) -> Source:
    request.refuse("a WebDataset", "axis", "slices", "labels", "split")
    if request.folder and holds_shards(request.folder):
        return _indexed(request, request.folder)
    paths = [path for path in (top_files(request.folder) if request.folder else request.files) if path.suffix.lower() == ".tar"]
    if not paths:
        raise UserError(f"{request.path} holds no .tar files: give the folder of the shards, or a pattern in quotes")
    dotted: list[str] = []
    found = {path: list(scan(path, dotted)) for path in paths}
    if not any(found.values()):
        hint = f"; {dotted[0]} is none, as a key ends at the first dot of a name" if dotted else ""
        raise UserError(f"{request.path}: the tars hold no images (.{' .'.join(IMAGES)}){hint}")
    given = {label for entries in found.values() for *_, label in entries if label is not None}
    for path, entries in found.items():
        for name, *_, label in entries:
            if given and label is None:
                raise UserError(f"{path}: {name} has no label and others have: add its .cls, or take the others away")
    class_of = _class_names(given)
    known = _numbered(set(class_of.values())) if given else ()
    if request.classes and not known:
        raise UserError(f"--classes: {request.path} has no labels")
    classes = choose_classes(known, request.classes, request.path)
    number = {name: label for label, name in enumerate(classes)}
    tasks, count = [], 0
    for path, entries in found.items():
        places = [
            Place(name, start, length, -1 if label is None else number[class_of[label]])
            for name, start, length, label in entries
            if label is None or class_of[label] in number
        ]
        tasks += [Members(str(path), tuple(places[part])) for part in chunks(len(places))]
        count += len(places)
    notes = (
        (f"images left alone, as a key ends at the first dot of a name: {len(dotted)}, such as {dotted[0]}",) if dotted else ()
    )
    return Source("webdataset", tasks, count, classes=classes, details={"from_shards": len(paths)}, notes=notes)


def compression(path: Path) -> str | None:
    """What a file is packed with, by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(6)
    return next((name for name, mark in PACKED.items() if start.startswith(mark)), None)


def _class_names(given: set[str]) -> dict[str, str]:
    """Label as the tars have it -> name of its class: where all are numbers, `007` is 7."""
    numbers = all(name.isdecimal() for name in given)
    return {name: str(int(name)) if numbers else name for name in given}


def _numbered(given: set[str]) -> tuple[str, ...]:
    """Class names: numbers keep their value as label, even where one of them has no image."""
    if all(name.isdecimal() for name in given) and max(map(int, given)) < 100_000:
        return tuple(str(n) for n in range(max(map(int, given)) + 1))
    return tuple(number_order(given))


def _indexed(request: Request, folder: Path) -> Source:
    index = read_index(folder)
    if request.classes and not index.labelled:
        raise UserError(f"--classes: {folder} has no labels")
    classes = choose_classes(index.classes, request.classes, str(folder))
    number = {index.classes.index(name): label for label, name in enumerate(classes)} if classes else {-1: -1}
    tasks, count = [], 0
    for shard_number, shard in enumerate(index.shards):
        rows = enumerate(read_offsets(index, shard_number).tolist())
        places = [Place(f"row {row}", start, size, number[label]) for row, (start, size, label) in rows if label in number]
        tasks += [Members(str(folder / shard.name), tuple(places[part])) for part in chunks(len(places))]
        count += len(places)
    details = {"from": {"index": index.sha256, "source": index.source, "licence": index.licence, "details": index.details}}
    volumes = index.details.get("slices_of_volumes") or index.details.get("volume_count", index.samples)
    if volumes < index.samples:
        details["slices_of_volumes"] = volumes
    if note := index.details.get("held_out_note"):
        details["held_out_note"] = note
    return Source("webdataset", tasks, count, classes=classes, details=details, held_out=held_out_of("", index))


def scan(path: Path, dotted: list[str]) -> Iterator[tuple[str, int, int, str | None]]:
    """Name, offset, length and label text of each image in a tar, by its headers alone.

    `dotted` gets the names of images that none of these are, as they have a dot before their suffix: `1.5x.png`.
    """
    size = path.stat().st_size
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, dict[str, str]] = {"cls": {}, "json": {}}
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK
                if member.isdir():
                    continue
                safe_name(member.name)
                if not member.isreg():
                    raise UserError(f"{path}: {member.name} is a link or a device, no file: pack it again")
                if member.issparse():
                    raise UserError(
                        f"{path}: {member.name} is packed without its empty parts (sparse): pack it again, as it is"
                    )
                if member.offset_data + member.size > size:
                    raise UserError(f"{path} is cut: {member.name} ends behind the end of the file; fetch it again")
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key, suffix = f"{folder}/{stem}", suffix.lower()
                if suffix in IMAGES:
                    if key in images:
                        raise UserError(f"{path}: {images[key][0]} and {member.name} have the same key: pack it again")
                    images[key] = member.name, member.offset_data, member.size
                elif suffix in ("cls", "json"):
                    label = _label(archive, member, suffix, path)
                    if label is not None:
                        labels[suffix][key] = label
                elif suffix.endswith(tuple(f".{image}" for image in IMAGES)) and not is_hidden(base):
                    dotted.append(member.name)
    except (tarfile.TarError, EOFError, OSError) as error:
        if packed := compression(path):
            raise UserError(
                f"{path} is packed with {packed}, so that no image can be read by itself: unpack it to a plain tar"
            ) from None
        raise UserError(f"{path} cannot be read ({one_line(error)}): fetch it again") from None
    with open(path, "rb") as file:
        if os.pread(file.fileno(), TAR_BLOCK, end) != bytes(TAR_BLOCK):
            raise UserError(f"{path} is cut: it lacks the mark at its end; fetch it again")
    lost = [key for key in labels["cls"] if key not in images]
    if lost:
        raise UserError(f"{path}: {lost[0].lstrip('/')} has a label and no image: it is incomplete; fetch it again")
    for key, (name, start, length) in images.items():
        yield name, start, length, labels["cls"].get(key, labels["json"].get(key))


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, path: Path) -> str | None:
    if member.size > MOST_LABEL_BYTES:
        raise UserError(f"{path}: {member.name} has {member.size:,} bytes, too many for a label")
    file = archive.extractfile(member)
    assert file is not None
    try:
        text = file.read().decode("utf-8-sig")  # some editors put a mark before the text
        if suffix == "cls":
            return text.strip() or None
        content = json.loads(text)
    except ValueError:
        raise UserError(f"{path}: {member.name} is no {'text' if suffix == 'cls' else 'JSON'}: pack it again") from None
    if not isinstance(content, dict):
        return None
    label = next((content[name] for name in ("label", "cls", "class") if name in content), None)
    if isinstance(label, dict | list):
        raise UserError(f"{path}: {member.name} has a {type(label).__name__} for a label: give one name or number an image")
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return None if label is None else str(label).strip() or None
