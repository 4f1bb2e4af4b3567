"""What every source of images gives: a list of tasks, each of which a worker process opens and turns into pictures."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from scalegan.data.index import holds_shards
from scalegan.data.sources.window import Slices, Window
from scalegan.errors import UserError

CHUNK = 16
"""Images that one task hands to a worker: enough to hide the cost of the hand-over, few enough for memory if they are large."""

MOST_DAMAGED = 100
"""After so many files that cannot be read, reading ends: it is not some of them that are damaged."""

Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class Picture:
    """One image as its source has it."""

    name: str
    """For messages: file, and place inside it."""
    content: bytes | NDArray[np.uint8] | NDArray[np.float64]
    """A whole image file, or uint8 [H, W] or [H, W, 3], or float64 [H, W] from 0 to 1: a slice that went through its window."""
    label: int = -1
    spacing: tuple[float, float] = (1.0, 1.0)
    """Height and width of a pixel, in any unit: not equal in many medical slices."""


class Task(Protocol):
    """Picklable; opened in whichever process works on it."""

    def open(self) -> tuple[Iterable[Picture], dict[str, Any]]:
        """The pictures, and what there is to record about them (of a volume: its window and slices)."""
        ...


@dataclass(frozen=True)
class Request:
    """What the command line asks of a source."""

    path: str
    """File, folder, or a pattern such as `scans/*.nii.gz`."""
    kind: str = "auto"
    labels: str | None = None
    classes: tuple[str, ...] = ()
    split: str | None = None
    axis: int | None = None
    slices: Slices | None = None
    window: Window | None = None

    @property
    def files(self) -> list[Path]:
        """The file itself, the files of a pattern, or none for a folder."""
        path = Path(self.path)
        if path.is_dir():
            return []
        if path.exists():
            return [path]
        return [found for found in expand(self.path) if found.is_file()]

    def one_file(self) -> Path:
        """Of kinds that are one archive. `UserError` for a pattern that matches several."""
        if len(self.files) > 1:
            raise UserError(f"{self.path} matches {len(self.files)} files: give one archive")
        return self.files[0]

    @property
    def folder(self) -> Path | None:
        path = Path(self.path)
        return path if path.is_dir() else None

    def refuse(self, what: str, *options: str) -> None:
        """`UserError` if one of `options`, which mean nothing for `what`, was given."""
        for option in options:
            if getattr(self, option) not in (None, ()):
                raise UserError(f"--{option} means nothing for {what}: leave it out")


@dataclass(frozen=True)
class Source:
    kind: str
    tasks: Sequence[Task]
    count: int
    """Images, or volumes where the number of slices shows only on opening."""
    unit: Literal["images", "volumes"] = "images"
    classes: tuple[str, ...] = ()
    fit: Fit = "crop"
    """What to do by default when `--size` has another aspect: photographs lose their margin, slices get a black one."""
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Sentences for the printed summary."""
    outside: int = 0
    """Images of these classes that lie outside the folders of the split."""
    held_out: str = ""
    """Folder of shards that were kept out of these, where it is shards that are read."""


class Damaged(UserError):
    """Files that cannot be read. Its arguments are a clause about each, such as `x.jpg is no readable image`."""

    def __str__(self) -> str:
        number = len(self.args)
        if number == 1:
            return f"{self.args[0]}: repair it or take it away"
        known = f"at least {number}" if number >= MOST_DAMAGED else number
        return f"{known} files cannot be read: {listed(self.args)}: repair them or take them away"


@contextmanager
def noting(damaged: list[str]) -> Iterator[None]:
    """What cannot be read within is added to `damaged`, so that all such files can be named together."""
    try:
        yield
    except Damaged as error:
        damaged.extend(error.args)


def expand(pattern: str) -> list[Path]:
    """Paths that match a pattern, sorted; `~` is not expanded, as the shell has done so."""
    import glob

    return [Path(found) for found in sorted(glob.glob(pattern, recursive=True))]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is the system's, such as `.DS_Store`, or `._1.png` and `__MACOSX` of a Mac."""
    return name.startswith((".", "__MACOSX"))


def unpacked(names: Iterable[str]) -> list[str]:
    """Sorted. Of one file both packed and unpacked, as `gunzip -k` leaves it, the unpacked."""
    forms = {name.removesuffix(".gz"): name for name in sorted(names, reverse=True)}
    return sorted(forms.values())


def top_files(folder: Path) -> list[Path]:
    """The files that lie in `folder` itself, sorted. Hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not is_hidden(path.name))


def walk(folder: Path) -> list[str]:
    """Paths of all files below `folder`, relative, with '/', sorted. Links are followed, but not in circles.

    Hidden ones are left out, and those in folders of shards, which an earlier call may have written beside the images.
    """
    found: list[str] = []

    def visit(place: str, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        status = os.stat(place)
        here = status.st_dev, status.st_ino
        if here in above or (above and holds_shards(Path(place))):
            return
        with os.scandir(place) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                # Of a link that leads to itself, `is_dir` of the entry raises; it needs no look at other files.
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    visit(entry.path, f"{prefix}{entry.name}/", (*above, here))
                else:
                    found.append(f"{prefix}{entry.name}")

    visit(os.fspath(folder), "", ())
    return sorted(found)


def chunks(length: int, size: int = CHUNK) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def choose_classes(known: Sequence[str], wanted: Sequence[str], where: str) -> tuple[str, ...]:
    """`wanted` in the order given, or all that are known; a name that is not known is an error with the nearest that is."""
    if not wanted:
        return tuple(known)
    chosen: list[str] = []
    for name in wanted:
        chosen += (varieties := named(name, known))
        if not varieties:
            near = difflib.get_close_matches(name.lower(), [other.lower() for other in known], n=1, cutoff=0.5)
            meant = next((other for other in known if near and other.lower() == near[0]), None)
            typed = f"'\"{meant}\"'" if meant and "," in meant else meant  # the shell takes the outer quotes
            hint = f"did you mean {typed}?" if meant else f"it has {listed(known)}"
            raise UserError(f"--classes: {where} has no class {name!r}: {hint}")
    if len(set(chosen)) < len(chosen):
        raise UserError("--classes names a class twice")
    return tuple(chosen)


def named(wanted: str, known: Sequence[str]) -> list[str]:
    """The class of that name, else its numbered varieties: releases of Fruits-360 since 2025 call Kiwi `Kiwi 1`."""
    if wanted in known:
        return [wanted]
    alike = [name for name in known if composed(name) == composed(wanted)]
    return alike or [name for name in known if re.fullmatch(re.escape(composed(wanted)) + r" \d+", composed(name))]


def composed(name: str) -> str:
    """The same letters, an accent as part of its own: a Mac writes the two apart in the names of files, and nobody sees it."""
    return unicodedata.normalize("NFC", name)


def one_line(error: BaseException) -> str:
    """What a library said, for the middle of a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


def listed(names: Sequence[str], limit: int = 8) -> str:
    shown = ", ".join(map(str, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def number_order(names: Iterable[str]) -> list[str]:
    """Sorted as numbers if all of them are, else as text."""
    names = set(names)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


SPLITS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip
"""Names of splits, in folders and on the command line, in lower case."""


def wanted_split(request: Request, there: Sequence[str], where: str) -> str:
    """`train`, `test`, `val` or `all`; by default the training images. `there`: the canonical names that exist."""
    if request.split is None:
        return "train" if "train" in there else "all"
    split = "all" if request.split.lower() == "all" else SPLITS.get(request.split.lower(), request.split)
    if split != "all" and split not in there:
        raise UserError(f"--split {request.split}: {where} has {listed([*there, 'all'])}")
    return split
