"""Which kind of source a path is, and the source itself."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from scalegan.data.index import holds_shards
from scalegan.data.sources.base import SPLITS, Request, Source, expand, top_files, walk
from scalegan.data.sources.cifar import BATCH, CIFAR_FOLDER, is_cifar_archive
from scalegan.data.sources.dicom import is_dicom
from scalegan.data.sources.folders import is_image
from scalegan.data.sources.idx import is_idx
from scalegan.data.sources.nifti import is_volume
from scalegan.data.sources.stylegan import LABELS
from scalegan.errors import UserError

KINDS = {
    "folders": ("scalegan.data.sources.folders", "class_folders"),
    "flat": ("scalegan.data.sources.folders", "flat_folder"),
    "stylegan": ("scalegan.data.sources.stylegan", "stylegan"),
    "idx": ("scalegan.data.sources.idx", "idx"),
    "cifar10": ("scalegan.data.sources.cifar", "cifar"),
    "nifti": ("scalegan.data.sources.nifti", "nifti"),
    "dicom": ("scalegan.data.sources.dicom", "dicom"),
    "webdataset": ("scalegan.data.sources.webdataset", "webdataset"),
}
PACKED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz|rar|7z)$", re.IGNORECASE)


def open_source(request: Request) -> Source:
    """Find out the kind, unless it is given, and read what the source holds. No image is decoded yet."""
    if request.folder is None and not request.files:
        if any(found.is_dir() for found in expand(request.path)):
            raise UserError(f"{request.path} matches folders and no files: give the folder they are in, or a pattern of files")
        raise UserError(f"{request.path} does not exist: check the path (patterns such as 'scans/*.nii.gz' go in quotes)")
    kind = detect(request) if request.kind == "auto" else request.kind
    module, function = KINDS[kind]
    source: Source = getattr(importlib.import_module(module), function)(request)
    return source


def detect(request: Request) -> str:
    return _folder_kind(request.folder, request) if request.folder else _file_kind(request)


def _file_kind(request: Request) -> str:
    """Of one file, or of the files that match a pattern."""
    kinds = {_kind_of_file(path) for path in request.files}
    known = sorted(kind for kind in kinds if kind)
    if len(known) > 1:
        raise UserError(f"{request.path} matches files of several kinds ({', '.join(known)}): choose one with --kind")
    if not known:
        _refuse_packed(request.files)
        raise UserError(f"{request.path} is of no kind that is read here: give a folder or one of {', '.join(KINDS)} (--kind)")
    return known[0]


def _kind_of_file(path: Path) -> str | None:
    if is_image(path.name):
        return "flat"
    if is_idx(path.name):
        return "idx"
    if is_cifar_archive(path.name) or BATCH.match(path.name):
        return "cifar10"
    if is_volume(path.name):
        return "nifti"
    if path.suffix.lower() == ".tar":
        return "webdataset"
    if path.suffix.lower() == ".zip":
        return "stylegan"
    return "dicom" if is_dicom(path) else None


def _folder_kind(folder: Path, request: Request) -> str:
    """The one kind of which it holds files. Of several none is chosen: one may be but the tar that class folders came from."""
    if holds_shards(folder):
        return "webdataset"
    top = top_files(folder)
    found = {kind: path.name for path in reversed(top) if (kind := _kind_of_file(path)) in ("idx", "cifar10", "webdataset")}
    if (folder / CIFAR_FOLDER).is_dir():
        found["cifar10"] = CIFAR_FOLDER
    names = walk(folder)
    images, volumes = [name for name in names if is_image(name)], [name for name in names if is_volume(name)]
    if images:
        found[_kind_of_images(folder, images, request)] = images[0]
    if volumes:
        found["nifti"] = volumes[0]
    if found and (scan := _some_dicom(folder, names)):
        found["dicom"] = scan
    if len(found) > 1:
        shown = ", ".join(f"{kind}: {name}" for kind, name in found.items())
        raise UserError(f"{folder} holds files of several kinds ({shown}): choose one with --kind")
    return next(iter(found), None) or _rare_kind(folder, top, names)


def _rare_kind(folder: Path, top: list[Path], names: list[str]) -> str:
    """Of a folder without images and without files that are known by their names."""
    if (folder / LABELS).is_file():
        return "stylegan"
    zips = [path for path in top if path.suffix.lower() == ".zip"]
    if zips:
        raise UserError(f"{folder} holds archives: give one of them, such as {zips[0]}")
    if any(is_dicom(folder / name) for name in names):
        return "dicom"
    _refuse_packed(top)
    raise UserError(f"{folder} holds no images, volumes or shards: check the path")


def _refuse_packed(paths: Sequence[Path]) -> None:
    if packed := next((path for path in paths if PACKED_TAR.search(path.name)), None):
        raise UserError(f"{packed} is a compressed archive: unpack it, and give the folder of its files")


def _some_dicom(folder: Path, names: list[str]) -> str | None:
    """A DICOM file among others. One file of each suffix is looked into, as a million captions would take minutes."""
    one_of_each = {PurePosixPath(name).suffix: name for name in reversed(names) if not is_image(name)}
    return next((name for name in one_of_each.values() if is_dicom(folder / name)), None)


def _kind_of_images(folder: Path, images: list[str], request: Request) -> str:
    if (folder / LABELS).is_file():
        return "stylegan"
    return "flat" if request.labels or not any("/" in name for name in images) or _only_splits(images) else "folders"


def _only_splits(images: list[str]) -> bool:
    """Whether the only folders are those of splits, such as `train/1.png`: then there are no classes."""
    return all(name.count("/") == 1 and name.split("/", 1)[0].lower() in SPLITS for name in images)
