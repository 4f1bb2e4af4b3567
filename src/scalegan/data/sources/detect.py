"""Which kind of source a path is, and the source itself."""

from __future__ import annotations

import importlib
from pathlib import Path

from scalegan.data.index import INDEX_NAME
from scalegan.data.sources.base import Request, Source, top_files, walk
from scalegan.data.sources.cifar import BATCH, is_cifar_archive
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


def open_source(request: Request) -> Source:
    """Find out the kind, unless it is given, and read what the source holds. No image is decoded yet."""
    if request.folder is None and not request.files:
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
    """By what lies at its top, else by the files below it."""
    top = top_files(folder)
    if (folder / INDEX_NAME).is_file():
        return "webdataset"
    if (folder / LABELS).is_file():
        return "stylegan"
    for kind in ("idx", "cifar10", "webdataset"):
        if any(_kind_of_file(path) == kind for path in top):
            return kind
    if (folder / "cifar-10-batches-bin").is_dir():
        return "cifar10"
    names = walk(folder)
    images = [name for name in names if is_image(name)]
    volumes = any(is_volume(name) for name in names)
    if images and volumes:
        raise UserError(f"{folder} holds both images and NIfTI volumes: choose with --kind folders, flat or nifti")
    if volumes:
        return "nifti"
    if images:
        return "flat" if request.labels or not any("/" in name for name in images) or _only_splits(images) else "folders"
    zips = [path for path in top if path.suffix.lower() == ".zip"]
    if zips:
        raise UserError(f"{folder} holds archives: give one of them, such as {zips[0]}")
    if any(is_dicom(folder / name) for name in names):
        return "dicom"
    raise UserError(f"{folder} holds no images, volumes or shards: check the path")


def _only_splits(images: list[str]) -> bool:
    """Whether the only folders are those of splits, such as `train/1.png`: then there are no classes."""
    from scalegan.data.sources.base import SPLITS

    return all(name.count("/") == 1 and name.split("/", 1)[0].lower() in SPLITS for name in images)
