"""What a folder of shards holds: `index.json` beside the tars, and one small array of byte offsets for each of them.

The index is read whole at start (one line per shard, nothing per sample); offsets are read when a shard is first used.
Its `sha256` names the content of the data set wherever the folder lies, so that a run can tell when its data changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalegan.data.cache import Unreadable, far, tries
from scalegan.errors import UserError, sought

INDEX_NAME = "index.json"
VERSION = 1
REMOTE_PROTOCOLS = ("s3", "gs", "https")
TAR_BLOCK = 512
PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "ckpt", "joblib")
"""Endings of files that run code when their usual readers read them."""


@dataclass(frozen=True)
class Shard:
    """One tar file: its samples are `<key>.jpg` or `<key>.png`, followed by `<key>.cls` when labelled."""

    name: str
    samples: int
    bytes: int
    sha256: str
    offsets: str
    """File name of an .npy, int64 [samples, 3]: byte offset of the image, its length, its label or -1."""
    offsets_sha256: str = ""
    """Of that .npy; the labels of random access stand in it, so it is checked like the shard itself."""


@dataclass(frozen=True)
class Index:
    root: str
    """Folder or URL prefix that the names are relative to; no part of `sha256`."""
    shards: tuple[Shard, ...]
    height: int
    width: int
    channels: int
    """1 or 3."""
    classes: tuple[str, ...]
    """Names in the order of their labels; empty when unlabelled."""
    class_counts: tuple[int, ...]
    source: str
    licence: str
    details: dict[str, Any]
    """How the images came about: size, fit, window, axis, split, seed, note on held-out data."""
    sha256: str
    held_out: str = field(default="", kw_only=True)
    """Folder of shards below `root` with images that were kept out of these; no part of `sha256`, as they are other data."""

    @cached_property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """int64 [shards + 1]: number of the first sample of each shard, and the total."""
        return np.concatenate([[0], np.cumsum([shard.samples for shard in self.shards])]).astype(np.int64)

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    def content(self) -> dict[str, Any]:
        """All but `root`, `sha256` and `held_out`, as JSON types."""
        fields = asdict(self)
        del fields["root"], fields["sha256"], fields["held_out"]
        content: dict[str, Any] = json.loads(json.dumps(fields))
        return content


def content_hash(content: dict[str, Any]) -> str:
    """sha256 of the canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_index(root: str, **content: Any) -> Index:
    """An index with its hash filled in."""
    draft = Index(root=root, sha256="", **content)
    return Index(root=root, sha256=content_hash(draft.content()), **content)


def index_text(index: Index) -> str:
    """Contents of `index.json`."""
    beside = {"held_out": index.held_out} if index.held_out else {}
    content = {"scalegan_shards": VERSION, **index.content(), **beside, "sha256": index.sha256}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def safe_name(name: str) -> str:
    """`name` itself if it stays below the folder or archive it stands in and is no pickle, else `UserError`.

    >>> safe_name("00000/img1.png")
    '00000/img1.png'
    """
    parts = PurePosixPath(name).parts
    unsafe = (
        not name
        or name.startswith(("/", "~"))
        or "\\" in name
        or ":" in name
        or not name.isprintable()
        or ".." in parts
        or PureWindowsPath(name).is_absolute()
    )
    if unsafe:
        raise UserError(f"unsafe file name {name!r}: names in an archive or index may not be absolute, hold '..', ':' or '\\'")
    if name.rpartition(".")[2].lower() in PICKLES:
        raise UserError(f"{name!r} may be a pickle, which runs code when it is read: take it out of the archive")
    return name


def is_remote(root: str) -> bool:
    """Whether `root` is a URL; `UserError` for a protocol that is not read."""
    if "://" not in root:
        return False
    protocol = root.split("://", 1)[0]
    if protocol not in REMOTE_PROTOCOLS:
        allowed = ", ".join(f"{name}://" for name in REMOTE_PROTOCOLS)
        raise UserError(f"{root}: protocol {protocol}:// is not read: give a local folder or {allowed}")
    if "::" in root:
        raise UserError(f"{root}: a chain of URLs (::) is not read: give one of them")
    return True


def read_bytes(root: str, name: str, start: int = 0, length: int | None = None) -> bytes:
    """Bytes [start, start + length) of a file under `root`, local or remote. Raises `FileNotFoundError` and `OSError`."""
    safe_name(name)
    if is_remote(root):
        # not `open`, which over HTTPS calls every fault, of a certificate or of the server, a file that is missing
        system, path = far(f"{root.rstrip('/')}/{name}")
        data: bytes = system.cat_file(path, start or None, None if length is None else start + length)
        return data
    with open(Path(root) / name, "rb") as file:
        file.seek(start)
        return file.read() if length is None else file.read(length)


def holds_shards(folder: Path) -> bool:
    """Whether `folder` has an index of ours, whole or damaged: other programs write an index.json too."""
    try:
        return b'"scalegan_shards"' in (folder / INDEX_NAME).read_bytes()
    except OSError:
        return False


def read_index(root: str | os.PathLike[str], *, compare: bool = True) -> Index:
    """The index of the folder or URL prefix `root`; `UserError` if it is missing, damaged or not that of the files there.

    Without `compare` the sizes of local files are not looked at: who skips what cannot be read finds out as it comes up.
    """
    root = os.fspath(root)
    if not root:
        raise UserError("data.path is empty: give a folder written by `scalegan shards SOURCE OUT`")
    where = f"{root.rstrip('/')}/{INDEX_NAME}"
    index = _parse(_read_text(root, where), root, where)
    if compare and not is_remote(root):
        _compare_with_files(index)
    return index


def _read_text(root: str, where: str) -> bytes:
    problem = ""
    for _ in tries(is_remote(root)):
        try:
            return read_bytes(root, INDEX_NAME)
        except FileNotFoundError:
            lost = not is_remote(root) and not os.path.exists(root)
            problem = f"there is no {sought(root)}" if lost else f"{root} holds no index of shards"
            raise UserError(f"{where} is missing: {problem}; write one with `scalegan shards SOURCE OUT`") from None
        except UserError:
            raise
        except Exception as error:  # fsspec hands on whatever its protocol's library raises
            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, PermissionError):
                break
    raise UserError(f"{where} cannot be read: {problem}")


def _parse(text: bytes, root: str, where: str) -> Index:
    try:
        fields = json.loads(text)
        version = fields.pop("scalegan_shards")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{where} is no index of scalegan shards: write the shards again") from None
    if version != VERSION:
        raise UserError(f"{where} has format {version}, this version reads {VERSION}: write the shards again")
    stated, held_out = fields.pop("sha256", ""), str(fields.pop("held_out", ""))
    if content_hash(fields) != stated:
        raise UserError(f"{where} does not match its own checksum: it was edited or cut; write the shards again")
    try:
        shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
        classes, counts = tuple(fields.pop("classes")), tuple(fields.pop("class_counts"))
        index = Index(
            root=root, shards=shards, classes=classes, class_counts=counts, sha256=stated, held_out=held_out, **fields
        )
    except (TypeError, KeyError):
        raise UserError(f"{where} lacks fields or has unknown ones: write the shards again") from None
    for shard in shards:
        safe_name(shard.name)
        safe_name(shard.offsets)
    if index.channels not in (1, 3) or index.height < 1 or index.width < 1 or any(shard.samples < 1 for shard in shards):
        raise UserError(f"{where} states impossible sizes: write the shards again")
    if len(classes) != len(counts) or (classes and sum(counts) != index.samples):
        raise UserError(f"{where} disagrees with itself: {sum(counts)} labels, {index.samples} images; write the shards again")
    return index


def _compare_with_files(index: Index) -> None:
    for number, shard in enumerate(index.shards):
        try:
            fits = (Path(index.root) / shard.name).stat().st_size == shard.bytes
        except OSError:
            fits = False
        if not fits:
            from scalegan.data.damage import open_local  # which decodes images, and reads tables by this module

            try:
                os.close(open_local(index, number))
            except Unreadable as problem:
                raise UserError(str(problem)) from None


def read_offsets(index: Index, shard_number: int) -> NDArray[np.int64]:
    """int64 [samples, 3] of one shard: byte offset of the image, its length, its label or -1."""
    shard = index.shards[shard_number]
    where = f"{index.root.rstrip('/')}/{shard.offsets}"
    try:
        data = read_bytes(index.root, shard.offsets)
    except FileNotFoundError:
        raise UserError(f"{where} is missing: copy or write the shards again") from None
    if shard.offsets_sha256 and hashlib.sha256(data).hexdigest() != shard.offsets_sha256:
        raise UserError(f"{where} does not match the checksum in {INDEX_NAME}: copy or write the shards again")
    try:
        offsets = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise UserError(f"{where} is no array of offsets: copy or write the shards again") from None
    if not isinstance(offsets, np.ndarray) or offsets.dtype != np.int64 or offsets.shape != (shard.samples, 3):
        raise UserError(f"{where} does not hold {shard.samples} offsets: copy or write the shards again")
    start, length, label = offsets.T
    low, high = (0, len(index.classes) - 1) if index.labelled else (-1, -1)
    inside = (start >= TAR_BLOCK) & (length > 0) & (length <= shard.bytes - start)
    if not (inside & (label >= low) & (label <= high)).all():
        raise UserError(f"{where} points outside {shard.name} or its classes: copy or write the shards again")
    return offsets


def locate(index: Index, samples: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sample numbers [n] -> number of the shard [n] and row inside it [n], both int64."""
    samples = np.asarray(samples, dtype=np.int64)
    shard = np.searchsorted(index.starts, samples, side="right").astype(np.int64) - 1
    return shard, samples - index.starts[shard]
