"""A folder of image files as it is compared: nothing is converted or copied, every image counts once.

It stands for shards where an evaluation wants some: it has an index, whose sha256 is that of the content of the files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from scalegan.config import DataConfig
from scalegan.data.cache import Unreadable
from scalegan.data.decode import decode
from scalegan.data.index import INDEX_NAME, Index, Shard
from scalegan.data.loader import Batch, Reader, on_device
from scalegan.data.sources.base import Picture, walk
from scalegan.data.sources.encode import EXIF_ORIENTATION, FORMATS, Transform
from scalegan.data.sources.folders import is_image
from scalegan.data.sources.window import Window, parse_window
from scalegan.errors import UserError
from scalegan.launcher import cores

GREY = ("1", "L", "LA", "La", "I", "F")
DEEP = ("I", "F")
"""Modes of more than 8 bits, with those whose names begin with "I;16"."""
MOST_THREADS = 16


@dataclass(frozen=True)
class ImageFolder(Index):
    """The images below a folder, in the order of their names."""

    files: tuple[str, ...]
    window: str
    """Which intensities become black and white, as `--window` has it; empty where no image has more than 8 bits."""


def read_folder(root: Path, window: str) -> ImageFolder:
    """Looks at every file. Raises `UserError` where they are not images of one size, or a folder of a class has none."""
    files = tuple(name for name in walk(root) if is_image(name))
    if not files:
        raise UserError(f"{root} holds no images, and {INDEX_NAME} is missing too: give a folder of images, shards, or a run")
    check_classes(root, files)
    kinds: dict[tuple[int, int], str] = {}
    depths: dict[bool, str] = {}
    channels, size, lines = 1, 0, bytearray()
    for name in files:
        content = read_file(root / name)
        lines += f"{len(name)} {name} {hashlib.sha256(content).hexdigest()}\n".encode()
        size += len(content)
        height, width, mode = header(content, root / name)
        deep = mode in DEEP or mode.startswith("I;16")
        depths.setdefault(deep, name)
        if deep and not window:
            raise UserError(
                f"{root / name} has more than 8 bits: say which intensities become black and white, by --window such as "
                "0,65535 or p1,p99"
            )
        kinds.setdefault((height, width), name)
        if len(kinds) > 1:
            shown = " and ".join(f"{h}x{w} ({file})" for (h, w), file in kinds.items())
            raise UserError(f"{root} holds images of several sizes, height x width: {shown}: bring them to one size first")
        channels = channels if deep or mode in GREY else 3
    window = needed_window(root, window, depths)
    (height, width) = next(iter(kinds))
    sha256 = hashlib.sha256(window.encode() + lines).hexdigest()
    return folder_index(str(root), files, window, height, width, channels, size, sha256)


def needed_window(root: Path, window: str, depths: dict[bool, str]) -> str:
    """`window` for a folder with images of more than 8 bits, none for any other; `depths` has one image of each kind that there
    is. Raises `UserError` where a range of the deep ones' intensities would be taken for one of the others'."""
    if True not in depths:
        return ""
    if len(depths) > 1 and parse_window(window).kind == "range":
        raise UserError(
            f"{root} holds images of 8 bits ({depths[False]}) and of more ({depths[True]}), and --window {window} "
            "cannot mean the intensities of both: save them alike, or give percentiles such as p1,p99"
        )
    return window


def check_window(window: str, *sides: object) -> None:
    """Raises `UserError` for a `--window` that none of the compared images needs."""
    if window and not any(isinstance(side, ImageFolder) and side.window for side in sides):
        raise UserError(f"--window {window} means nothing for folders without images of more than 8 bits: leave it out")


def folder_index(
    root: str, files: Sequence[str], window: str, height: int, width: int, channels: int, size: int, sha256: str
) -> ImageFolder:
    whole = Shard(".", len(files), size, sha256, "")
    return ImageFolder(
        root, (whole,), height, width, channels, (), (), source=root, licence="", details={}, sha256=sha256,
        files=tuple(files), window=window,
    )  # fmt: skip


def to_json(folder: ImageFolder) -> dict[str, Any]:
    """What `from_json` makes the same folder of, on a process that has not looked at the files."""
    names = ("root", "files", "window", "height", "width", "channels", "sha256")
    facts: dict[str, Any] = json.loads(json.dumps({name: getattr(folder, name) for name in names}))
    return facts | {"size": folder.shards[0].bytes}


def from_json(facts: dict[str, Any]) -> ImageFolder:
    return folder_index(**facts)


def check_classes(root: Path, files: Sequence[str]) -> None:
    """An empty folder among full ones is a class that got lost on the way."""
    full = {name.split("/", 1)[0] for name in files if "/" in name}
    empty = sorted(
        e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith((".", "__MACOSX")) and e.name not in full
    )
    if full and empty:
        raise UserError(f"{root / empty[0]} holds no images while other folders beside it do: fill it, or take it away")


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def header(content: bytes, path: Path) -> tuple[int, int, str]:
    """Height and width as shown, and Pillow's mode."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
            width, height = image.size[::-1] if turned else image.size
            return height, width, image.mode
    except Exception:  # damaged files reach every corner of the decoders
        raise UserError(f"{path} is no readable image: repair it or take it away") from None


class FolderReader:
    """Any images by number, decoded by threads, on the device."""

    def __init__(self, folder: ImageFolder, device: torch.device) -> None:
        self.folder, self.device = folder, device
        window: Window | None = parse_window(folder.window) if folder.window else None
        self.transform = Transform(None, "stretch", folder.channels, window)
        self.pool = ThreadPoolExecutor(min(cores(), MOST_THREADS), thread_name_prefix="scalegan-decode")

    def read(self, samples: NDArray[np.int64]) -> Batch:
        """The images `samples` [b]. Raises `UserError`, which names the file."""
        images = np.stack(list(self.pool.map(self.pixels, samples.tolist())))
        return on_device(images, np.full(len(samples), -1, np.int64), self.device)

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """uint8 [H, W, C]"""
        path = Path(self.folder.root) / self.folder.files[number]
        encoded = self.transform(Picture(str(path), read_file(path)))
        try:
            return decode(encoded.data, self.folder.height, self.folder.width, self.folder.channels)
        except Unreadable as problem:
            raise UserError(f"{path} {problem}: it has changed since the folder was looked at") from None

    @property
    def unreadable(self) -> int:
        """A folder's images are all read, or the first that cannot be ends it."""
        return 0

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


def open_images(index: Index, data: DataConfig, device: torch.device) -> Reader | FolderReader:
    """A reader of single images, of shards or of a folder."""
    if isinstance(index, ImageFolder):
        return FolderReader(index, device)
    return Reader(index, data, device)
