"""NIfTI volumes (also Analyze and FreeSurfer's MGH), cut into slices."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scalegan.data.sources.base import Damaged, Picture, Request, Source, one_line, unpacked, walk
from scalegan.data.sources.folders import csv_labels
from scalegan.data.sources.volume import MOST_VOXELS, Cut, canonical, cut_of, medical_import_error, planes, take
from scalegan.errors import UserError

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".mgh", ".mgz")
AXIAL = 2
BEST_GZIP = 1032


def is_volume(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class File:
    """One volume."""

    path: str
    label: int
    cut: Cut

    def open(self) -> tuple[Iterable[Picture], dict[str, Any]]:
        try:
            nibabel: Any = importlib.import_module("nibabel")
        except ImportError as error:
            raise medical_import_error("nibabel", error) from None
        try:
            image = nibabel.load(self.path)
            shape = self._shape(image)
            values = np.asarray(image.get_fdata(dtype=np.float64)).reshape(shape)
            values, sizes = canonical(values, np.asarray(image.affine, np.float64))
        except UserError:
            raise
        except Exception as error:  # nibabel hands on whatever a damaged header breaks inside it
            raise Damaged(f"{self.path} cannot be read ({one_line(error)})") from None
        assert self.cut.axis is not None
        stack, spacing = planes(values, sizes, self.cut.axis)
        pictures, facts = take(stack, spacing, self.cut, name=self.path, label=self.label)
        if not _says_orientation(image):
            facts["note"] = "the file does not say which way its axes point: check the contact sheet for exchanged sides"
        return pictures, facts

    def _shape(self, image: Any) -> tuple[int, ...]:
        """Three sides, of a size that the file can hold."""
        shape = tuple(int(n) for n in image.shape)
        sides = " x ".join(map(str, shape))
        voxels = int(np.prod(shape, dtype=object))
        packed = Path(self.path).stat().st_size
        if voxels > MOST_VOXELS or (self.path.endswith((".gz", ".mgz")) and voxels > packed * BEST_GZIP):
            raise UserError(f"{self.path} claims {sides} voxels in {packed:,} bytes: it is damaged or too large")
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 1:
            raise UserError(f"{self.path} has {len(shape)} dimensions ({sides}): give volumes with three")
        if np.dtype(image.get_data_dtype()).kind not in "iuf":
            raise UserError(f"{self.path} holds {image.get_data_dtype()} values: give a volume of intensities")
        return shape


def _says_orientation(image: Any) -> bool:
    """FreeSurfer's files always say where they lie; NIfTI by two codes, Analyze not at all."""
    if type(image).__name__ == "MGHImage":
        return True
    header = image.header
    return "qform_code" in header and bool(int(header["qform_code"]) or int(header["sform_code"]))


def nifti(request: Request) -> Source:
    request.refuse("NIfTI volumes", "split")
    if request.window and request.window.kind == "dicom":
        raise UserError("--window dicom: NIfTI files carry no window: give LO,HI or percentiles such as p1,p99")
    folder = request.folder
    if folder:
        found = [name for name in walk(folder) if is_volume(name)]
        short = unpacked(found)
        names = [str(folder / name) for name in short]
    else:
        found = [str(path) for path in request.files if is_volume(path.name)]
        names = unpacked(found)
        short = [Path(name).name for name in names]
    if not names:
        raise UserError(f"{request.path} holds no volumes ({' '.join(SUFFIXES)}): check the path")
    classes, labels = csv_labels(request, names, short)
    cut = cut_of(request, AXIAL)
    tasks = [File(name, label, cut) for name, label in zip(names, labels, strict=True) if label >= 0 or not classes]
    twice = len(found) - len(names)
    notes = (f"packed volumes left alone, as they are there unpacked too: {twice}",) if twice else ()
    return Source("nifti", tasks, len(tasks), "volumes", classes, "pad", cut.details(), notes)
