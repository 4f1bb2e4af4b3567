"""DICOM series, cut into slices as they were acquired or, with `--axis`, through the volume that they make up."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalegan.data.sources.base import Damaged, Picture, Request, Source, noting, one_line, walk
from scalegan.data.sources.folders import csv_labels
from scalegan.data.sources.volume import Cut, canonical, cut_of, medical_import_error, planes, take
from scalegan.data.sources.window import Window, apply_window
from scalegan.errors import UserError

GREY = ("MONOCHROME1", "MONOCHROME2")
HEADER = (
    "SeriesInstanceUID", "SOPInstanceUID", "Modality", "Rows", "Columns",
    "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber",
)  # fmt: skip
ABOUT_IMAGES = ("SEG", "RTDOSE")
"""Modalities of files that have pixels, but of a mask or a dose: nothing that a scanner saw."""
EVEN = 0.02
"""Largest relative difference between the gaps of slices that are taken for evenly spaced."""


def is_dicom(path: Path) -> bool:
    """By its suffix, or by the mark that every DICOM file has behind its preamble: many have no suffix."""
    if path.suffix.lower() in (".dcm", ".dicom", ".ima"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@dataclass(frozen=True)
class Frame:
    """One image of a file."""

    values: NDArray[np.float64]
    """[H, W], after the modality's rescaling."""
    inverted: bool
    spacing: tuple[float, float]
    orientation: NDArray[np.float64] | None
    """Direction of a row and of a column [6], in the patient's coordinates."""
    position: NDArray[np.float64] | None
    window: tuple[float, float] | None
    """The file's own black and white point."""


@dataclass(frozen=True)
class Series:
    """Files that belong together, in the order of their slices."""

    paths: tuple[str, ...]
    label: int
    cut: Cut
    own_window: bool
    explicit_window: bool

    @property
    def name(self) -> str:
        return self.paths[0] if len(self.paths) == 1 else f"{Path(self.paths[0]).parent} ({len(self.paths)} files)"

    def open(self) -> tuple[Iterable[Picture], dict[str, Any]]:
        opened, damaged = [], list[str]()
        for path in self.paths:
            with noting(damaged):
                opened.append((path, read_file(path)))
        if damaged:
            raise Damaged(*damaged)
        if any(isinstance(content, np.ndarray) for _, content in opened):
            return self._colour(opened)
        frames = [frame for _, content in opened for frame in content]
        cut = self.cut
        if self.own_window:
            frames = [self._shown(frame) for frame in frames]
            cut = Cut(cut.axis, cut.slices, Window("range", 0.0, 1.0))
        first = frames[0]
        if any(frame.values.shape != first.values.shape or frame.inverted != first.inverted for frame in frames):
            raise UserError(f"{self.name} mixes images of several sizes or kinds in one series: keep them apart")
        stack, spacing = np.stack([frame.values for frame in frames]), first.spacing
        if cut.axis is not None:
            stack, spacing = planes(*self._volume(frames), cut.axis)
        inverted = first.inverted and not self.own_window
        pictures, facts = take(stack, spacing, cut, name=self.name, label=self.label, inverted=inverted)
        if self.own_window:
            facts["window"] = "dicom"
        return pictures, facts

    def _colour(self, opened: Sequence[tuple[str, Any]]) -> tuple[Iterable[Picture], dict[str, Any]]:
        images = [(path, frame) for path, content in opened if isinstance(content, np.ndarray) for frame in content]
        if len(images) < len(opened) or self.cut.axis is not None or self.cut.slices or self.explicit_window:
            raise UserError(f"{self.name} is in colour: give it without --axis, --slices and --window, and without grey images")
        facts = {"window": None, "taken": len(images), "of": len(images)}
        return (Picture(path, frame, self.label) for path, frame in images), facts

    def _shown(self, frame: Frame) -> Frame:
        if frame.window is None:
            raise UserError(f"--window dicom: {self.name} states no window: give LO,HI or percentiles such as p1,p99")
        shown = apply_window(frame.values, *frame.window)
        return Frame(1.0 - shown if frame.inverted else shown, False, frame.spacing, frame.orientation, frame.position, None)

    def _volume(self, frames: list[Frame]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """RAS+ volume and voxel sizes."""
        hint = "leave --axis out to take the slices as they were acquired"
        placed = [frame.position for frame in frames if frame.position is not None]
        row_column = frames[0].orientation
        if len(frames) < 2 or len(placed) < len(frames) or row_column is None:
            raise UserError(f"{self.name} makes up no volume (its images have no place in space): {hint}")
        across, down = row_column[:3], row_column[3:]
        if any(frame.orientation is None or not np.allclose(frame.orientation, row_column, atol=1e-3) for frame in frames):
            raise UserError(f"{self.name} has slices in several directions: {hint}")
        normal = np.cross(across, down)
        heights = np.array([position @ normal for position in placed])
        order = np.argsort(heights, kind="stable")
        gaps = np.diff(heights[order])
        if gaps.min() <= 0 or gaps.max() - gaps.min() > EVEN * gaps.mean():
            where = "two slices at one place" if gaps.min() <= 0 else f"gaps of {gaps.min():.3g} to {gaps.max():.3g} mm"
            raise UserError(f"{self.name} has {where}, so it makes up no even volume (is a slice missing?): {hint}")
        values = np.stack([frames[i].values for i in order], axis=-1)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = down * frames[0].spacing[0], across * frames[0].spacing[1]
        affine[:3, 2] = (placed[order[-1]] - placed[order[0]]) / (len(frames) - 1)
        affine[:2] *= -1  # DICOM counts to the patient's left and back, RAS+ to the right and front
        return canonical(values, affine)


def read_file(path: str) -> list[Frame] | NDArray[np.uint8]:
    """The grey frames of one file, or its colour frames as uint8 [n, H, W, 3]."""
    pydicom, pixels = importlib.import_module("pydicom"), importlib.import_module("pydicom.pixels")
    try:
        data = pydicom.dcmread(path)
        photometric = str(data.get("PhotometricInterpretation", "nothing"))
        colour = int(data.get("SamplesPerPixel", 1)) == 3
        if (not colour and photometric not in GREY) or (colour and int(data.BitsAllocated) != 8):
            depth = f"{data.get('BitsAllocated')} bits"
            raise UserError(f"{path} has {photometric} images of {depth}, which are not read: convert it to grey or 8-bit RGB")
        images = _decoded(path, data, pixels)
        if int(data.get("NumberOfFrames", 1) or 1) == 1:
            images = images[None]
        if colour:
            return np.asarray(images, np.uint8)
        return [_frame(data, number, pixels.apply_modality_lut, image) for number, image in enumerate(images)]
    except UserError:
        raise
    except Exception as error:  # pydicom hands on whatever a damaged element breaks inside it
        raise Damaged(f"{path} cannot be read ({one_line(error)})") from None


def _decoded(path: str, data: Any, pixels: Any) -> NDArray[Any]:
    syntax = data.file_meta.TransferSyntaxUID
    try:
        decoder = pixels.get_decoder(syntax) if syntax.is_compressed else None
    except NotImplementedError:
        decoder = None
    if syntax.is_compressed and not (decoder and decoder.is_available):
        raise UserError(
            f"{path} is compressed ({syntax.name}) and no decoder for that is installed: "
            "pip install 'pylibjpeg[all]', or decompress the files first (gdcmconv --raw, dcmdjpeg)"
        )
    try:
        images: NDArray[Any] = pixels.pixel_array(data)
    except Exception as error:  # each decoder has its own
        if decoder is None or not decoder.missing_dependencies:
            raise
        hint = "if the file is whole, pip install 'pylibjpeg[all]' brings other decoders"  # Pillow, say, knows no 12 bits
        raise Damaged(f"{path} cannot be read ({one_line(error)}; {hint})") from None
    return images


def _frame(data: Any, number: int, apply_modality_lut: Any, image: NDArray[Any]) -> Frame:
    rescale = "PixelValueTransformationSequence"
    slope, intercept = (_lookup(data, number, rescale, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if "ModalityLUTSequence" in data:
        values = np.asarray(apply_modality_lut(image, data), np.float64)
    else:
        values = image.astype(np.float64) * float(1 if slope is None else slope) + float(intercept or 0)
    spacing = _lookup(data, number, "PixelMeasuresSequence", "PixelSpacing") or data.get("ImagerPixelSpacing") or (1.0, 1.0)
    orientation = _lookup(data, number, "PlaneOrientationSequence", "ImageOrientationPatient")
    position = _lookup(data, number, "PlanePositionSequence", "ImagePositionPatient")
    return Frame(
        values,
        data.PhotometricInterpretation == "MONOCHROME1",
        _positive(spacing),
        np.array(orientation, np.float64) if orientation else None,
        np.array(position, np.float64) if position else None,
        _own_window(data, number),
    )


def _positive(spacing: Sequence[Any]) -> tuple[float, float]:
    """Height and width of a pixel; square where the file says what no pixel can be."""
    down, across = float(spacing[0]), float(spacing[1])
    return (down, across) if 0 < down < np.inf and 0 < across < np.inf else (1.0, 1.0)


def _lookup(data: Any, number: int, sequence: str, name: str) -> Any:
    """An element of the file, or, in enhanced multi-frame files, of the frame or of all frames."""
    if name in data:
        return data.get(name)
    frames, shared = data.get("PerFrameFunctionalGroupsSequence"), data.get("SharedFunctionalGroupsSequence")
    for group in ([frames[number]] if frames else []) + list(shared or []):
        inside = group.get(sequence)
        if inside and name in inside[0]:
            return inside[0].get(name)
    return None


def _own_window(data: Any, number: int) -> tuple[float, float] | None:
    """DICOM PS3.3 C.11.2.1.2: for LINEAR the width counts whole steps, for LINEAR_EXACT it is a length."""
    center, width = (_lookup(data, number, "FrameVOILUTSequence", name) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    middle, span = (float(v[0] if hasattr(v, "__len__") and not isinstance(v, str) else v) for v in (center, width))
    function = _lookup(data, number, "FrameVOILUTSequence", "VOILUTFunction") or "LINEAR"
    if function == "LINEAR":
        middle, span = middle - 0.5, span - 1
    return (middle - span / 2, middle + span / 2) if span > 0 and function != "SIGMOID" else None


def dicom(request: Request) -> Source:
    request.refuse("DICOM files", "split")
    try:
        import pydicom
    except ImportError as error:
        raise medical_import_error("pydicom", error) from None
    folder = request.folder
    paths = [folder / name for name in walk(folder)] if folder else request.files
    paths = [path for path in paths if is_dicom(path)]
    groups: dict[tuple[Any, ...], list[tuple[tuple[float, ...], str]]] = {}
    others, damaged = 0, list[str]()
    for path in paths:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
            if not header.get("Rows") or header.get("Modality") in ABOUT_IMAGES:
                others += 1  # reports, directories and the like hold no image
                continue
            key, place = _place(header)
        except Exception as error:  # pydicom hands on whatever a damaged element breaks inside it
            damaged.append(f"{path} is no readable DICOM file ({one_line(error)})")
            continue
        groups.setdefault(key, []).append((place, str(path)))
    if damaged:
        raise Damaged(*damaged)
    if not groups:
        raise UserError(f"{request.path} holds no DICOM images: check the path")
    series = sorted(tuple(path for _, path in sorted(found)) for found in groups.values())
    names = [files[0] for files in series]
    below = [Path(name).relative_to(folder) if folder else Path(Path(name).name) for name in names]
    short = [str(path.parent if path.parent != Path() else path) for path in below]
    classes, labels = csv_labels(request, names, [str(path) for path in below], short)
    cut = cut_of(request, None)
    own = request.window is not None and request.window.kind == "dicom"
    tasks = [
        Series(files, label, cut, own, request.window is not None)
        for files, label in zip(series, labels, strict=True)
        if label >= 0 or not classes
    ]
    notes = (f"files without an image left alone: {others}",) if others else ()
    return Source("dicom", tasks, len(tasks), "volumes", classes, "pad", cut.details(), notes)


def _place(header: Any) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """The series that an image belongs to (scouts in another direction apart), and where it stands in it."""
    orientation, position = header.get("ImageOrientationPatient"), header.get("ImagePositionPatient")
    instance = float(header.get("InstanceNumber") or 0)
    directions = tuple(round(float(v), 2) for v in orientation) if orientation else ()
    series = str(header.get("SeriesInstanceUID") or header.get("SOPInstanceUID") or header.filename)  # some are blanked out
    key = (series, int(header.Rows), int(header.Columns), directions)
    if orientation and position:
        row_column = np.array(orientation, np.float64)
        normal = np.cross(row_column[:3], row_column[3:])
        return key, (round(float(np.array(position, np.float64) @ normal), 4), instance)
    return key, (0.0, instance)
