"""Folders of image files: a folder for each class, or one flat folder with labels from a CSV file or without."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scalegan.data.sources.base import (
    SPLITS,
    Picture,
    Request,
    Source,
    choose_classes,
    chunks,
    composed,
    listed,
    number_order,
    one_line,
    walk,
    wanted_split,
)
from scalegan.data.sources.encode import IMAGE_SUFFIXES
from scalegan.errors import UserError


@dataclass(frozen=True)
class Files:
    """Some image files."""

    root: str
    names: tuple[str, ...]
    labels: tuple[int, ...]

    def open(self) -> tuple[Iterable[Picture], dict[str, Any]]:
        return self._pictures(), {}

    def _pictures(self) -> Iterator[Picture]:
        for name, label in zip(self.names, self.labels, strict=True):
            path = Path(self.root) / name
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
            yield Picture(str(path), content, label)


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def file_tasks(root: Path | str, names: Sequence[str], labels: Sequence[int]) -> list[Files]:
    return [Files(str(root), tuple(names[part]), tuple(labels[part])) for part in chunks(len(names))]


def images_below(folder: Path) -> tuple[list[str], int]:
    """Image files by their suffix, and the number of other files."""
    names = walk(folder)
    images = [name for name in names if is_image(name)]
    if not images:
        kinds = sorted(IMAGE_SUFFIXES)
        raise UserError(f"{folder} holds no images ({' '.join(kinds)}): give the folder they are in")
    return images, len(names) - len(images)


def left_alone(others: int) -> tuple[str, ...]:
    return (f"other files left alone: {others}",) if others else ()


@dataclass(frozen=True)
class Layout:
    """A folder of images, with the folders of its splits taken off."""

    images: dict[str, str]
    """Path below SOURCE -> path below the folder of its split."""
    prefix: str
    """Folder, relative to SOURCE, that holds all of it: downloads often wrap theirs in one or two."""
    split: str | None
    """`train`, `test`, `val`, `all`, or None where there are no splits."""
    notes: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    """Images that are not of the split, without `prefix`: `Test/Kiwi/1.jpg`."""


def read_layout(request: Request, folder: Path) -> Layout:
    """Find `Training/`, `test/` and the like, and keep the images of the split that is asked for."""
    images, others = images_below(folder)
    notes = left_alone(others)
    prefix = _wrapper(images)
    rest = {name: name.removeprefix(prefix) for name in images}
    tops = {name.split("/", 1)[0] for name in rest.values() if "/" in name}
    splits = {top: SPLITS[top.lower()] for top in sorted(tops) if top.lower() in SPLITS}
    if not splits or (request.split is None and not _are_splits(splits, tops, rest.values())):
        if request.split is not None:
            raise UserError(f"--split {request.split}: {folder / prefix} has no folders Training and Test: leave it out")
        return Layout(rest, prefix, None, notes)
    where = f"{folder / prefix} ({', '.join(splits)})"
    split = wanted_split(request, sorted(set(splits.values())), where)
    chosen = [top for top, name in splits.items() if split in ("all", name)]
    kept = {name: below.split("/", 1)[1] for name, below in rest.items() if "/" in below and below.split("/", 1)[0] in chosen}
    return Layout(kept, prefix, split, notes, tuple(below for name, below in rest.items() if name not in kept))


def _are_splits(splits: dict[str, str], tops: set[str], names: Iterable[str]) -> bool:
    """Whether folders of these names are no classes, which may be called `train` or `test` too, of the others' kind."""
    if len(splits) == len(tops):
        return True
    if "train" not in splits.values():
        return False
    deep = {name.split("/", 1)[0] for name in names if name.count("/") > 1}
    return len(set(splits.values())) > 1 or deep == splits.keys()


def _wrapper(names: list[str]) -> str:
    """Folders that unpacked archives wrap around all others: `fruits-360/` of `fruits-360/Training/Kiwi/1.jpg`."""
    prefix = ""
    while True:
        parts = [name[len(prefix) :].split("/") for name in names]
        one_folder = len({part[0] for part in parts}) == 1
        if not one_folder or min(map(len, parts)) < 3 or parts[0][0].lower() in SPLITS:
            return prefix
        prefix += parts[0][0] + "/"


def class_folders(request: Request) -> Source:
    """`SOURCE/<class>/**/*.jpg`, or `SOURCE/<split>/<class>/**/*.jpg`; classes are numbered in the order of their names."""
    folder = _folder(request)
    request.refuse("class folders", "axis", "slices", "labels")
    layout = read_layout(request, folder)
    loose = [name for name, below in layout.images.items() if "/" not in below]
    if len(loose) == len(layout.images):
        raise UserError(f"{folder} has no class folders: use --kind flat for images without them")
    if loose:
        example = folder / loose[0]
        raise UserError(
            f"{folder} has class folders and {len(loose)} images outside them, such as {example}: move them, or use --kind flat"
        )
    class_of = {name: below.split("/", 1)[0] for name, below in layout.images.items()}
    classes = choose_classes(sorted(set(class_of.values())), request.classes, str(folder))
    for name in classes:
        if name.encode(errors="ignore").decode() != name:
            raise UserError(f"{folder} has a folder {name!r}, whose name is not in UTF-8: rename it")
    number = {name: label for label, name in enumerate(classes)}
    names = [name for name in layout.images if class_of[name] in number]
    labels = [number[class_of[name]] for name in names]
    outside = [below for below in layout.outside if not request.classes or _class_outside(below) in number]
    return Source(
        "folders",
        file_tasks(folder, names, labels),
        len(names),
        classes=classes,
        details={"split": layout.split} if layout.split else {},
        notes=layout.notes,
        outside=len(outside),
    )


def _class_outside(below: str) -> str | None:
    """The class of an image in the folder of another split."""
    parts = below.split("/")
    return parts[1] if len(parts) > 2 else None


def flat_folder(request: Request) -> Source:
    """Images with a CSV file of labels, or without labels; also a pattern of image files."""
    request.refuse("a flat folder of images", "axis", "slices")
    folder = request.folder
    if folder:
        layout = read_layout(request, folder)
        names, split, notes, outside = list(layout.images), layout.split, layout.notes, len(layout.outside)
        short = [name.removeprefix(layout.prefix) for name in names]
    else:
        request.refuse("single files", "split")
        names = [str(path) for path in request.files if is_image(path.name)]
        notes = left_alone(len(request.files) - len(names))
        short, split, outside = [Path(name).name for name in names], None, 0
        if not names:
            raise UserError(f"{request.path} names no images: check the path")
    classes, labels = csv_labels(request, names, short)
    kept = [(name, label) for name, label in zip(names, labels, strict=True) if label >= 0 or not classes]
    names, labels = [name for name, _ in kept], [label for _, label in kept]
    details = {"split": split} if split else {}
    tasks = file_tasks(folder or "", names, labels)
    return Source("flat", tasks, len(names), classes=classes, details=details, notes=notes, outside=outside)


def csv_labels(request: Request, names: Sequence[str], *others: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Classes and label of each file, from `--labels`; -1 for files of classes that `--classes` leaves out.

    `others` are further names that the table may use for the same files, the last those that messages use.
    """
    if request.labels is None:
        if request.classes:
            raise UserError("--classes needs labels: give --labels file.csv (columns file,label), or class folders of images")
        return (), [-1] * len(names)
    table = read_csv(Path(request.labels))
    times = Counter(others[-1]) if request.folder is None else Counter[str]()
    given: list[str] = []
    for known in zip(names, *others, strict=True):
        name, other = known[0], known[-1]
        keys = [composed(key) for key in known]
        if keys[0] not in table and times[other] > 1:
            raise UserError(
                f"{request.labels} cannot mean one of the {times[other]} files called {other}: add lines with their paths, "
                f"such as '{name},LABEL'"
            )
        label = next((table[key] for key in keys if key in table), None)
        if label is None:
            raise UserError(
                f"{request.labels} has no label for {other}: add a line '{other},LABEL' "
                f"(the table names {listed(list(table), 2)})"
            )
        given.append(label)
    classes = choose_classes(number_order(given), request.classes, request.labels)
    number = {name: label for label, name in enumerate(classes)}
    return classes, [number.get(name, -1) for name in given]


def read_csv(path: Path) -> dict[str, str]:
    """The columns `file` and `label` of a table."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = [column.strip().lower() for column in rows.fieldnames or []]
            if "file" not in columns or "label" not in columns:
                raise UserError(f"{path} has columns {listed(columns) or 'none'}: its first line must name file,label")
            rows.fieldnames = columns
            return _table(path, rows)
    except OSError as error:
        raise UserError(f"--labels {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labels {path} is no CSV file in UTF-8: {one_line(error)}") from None


def _table(path: Path, rows: csv.DictReader[str]) -> dict[str, str]:
    table: dict[str, str] = {}
    for row in rows:
        name = composed(row["file"] or "").strip().replace("\\", "/").removeprefix("./")
        label = (row["label"] or "").strip()
        if not name or not label:
            raise UserError(f"{path}, line {rows.line_num}: file or label is empty")
        if table.setdefault(name, label) != label:
            raise UserError(f"{path}, line {rows.line_num}: {name} has two labels, {table[name]} and {label}")
    if not table:
        raise UserError(f"{path} has no lines below its first")
    return table


def _folder(request: Request) -> Path:
    if request.folder is None:
        raise UserError(f"{request.path} is no folder: class folders need one")
    return request.folder
