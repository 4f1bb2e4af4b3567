"""Slices of volumes: orientation, axis, window, and which slices are worth training on.

Volumes are brought to RAS+ first (the first axis points to the patient's right, the second to the front, the third up), so
that slices come out upright whichever way the scanner wrote them: front or top of the head at the upper edge, the
patient's left at the left edge, and in sagittal slices the front at the right.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalegan.data.sources.base import Picture, Request
from scalegan.data.sources.window import Slices, Window, apply_window
from scalegan.errors import UserError

AXES = ("sagittal", "coronal", "axial")
DEFAULT_WINDOW = Window("percentile", 1, 99)
FOREGROUND_LEVEL = 0.1
FOREGROUND_SHARE = 0.05
"""Without `--slices`, a slice is taken if this share of its pixels is brighter than a tenth of the window."""
MOST_VOXELS = 1_000_000_000


@dataclass(frozen=True)
class Cut:
    """How volumes are cut into slices."""

    axis: int | None
    """0, 1, 2: sagittal, coronal, axial; None: as the scanner acquired them (DICOM)."""
    slices: Slices | None
    window: Window

    def details(self) -> dict[str, Any]:
        taken = str(self.slices) if self.slices else f"with at least {FOREGROUND_SHARE:.0%} foreground"
        return {
            "axis": AXES[self.axis] if self.axis is not None else "as acquired",
            "slices": taken,
            "window": str(self.window),
            "orientation": "as stored" if self.axis is None else "upright, the patient's left at the left",
        }


def cut_of(request: Request, default_axis: int | None) -> Cut:
    axis = default_axis if request.axis is None else request.axis
    return Cut(axis, request.slices, request.window or DEFAULT_WINDOW)


def canonical(values: NDArray[np.float64], affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """values [I, J, K] and affine [4, 4] to RAS+ millimetres -> [X, Y, Z], flipped and transposed, and voxel sizes [3]."""
    orientations = importlib.import_module("nibabel.orientations")
    orientation = orientations.io_orientation(affine)
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if np.isnan(orientation).any() or not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError("its orientation matrix is degenerate")
    ordered = np.empty(3)
    ordered[orientation[:, 0].astype(int)] = sizes
    return np.asarray(orientations.apply_orientation(values, orientation)), ordered


def planes(
    values: NDArray[np.float64], sizes: NDArray[np.float64], axis: int
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """RAS+ volume [X, Y, Z] -> upright slices [n, H, W] along `axis`, and the height and width of a pixel."""
    across, down = [other for other in range(3) if other != axis]
    return values.transpose(axis, down, across)[:, ::-1], (float(sizes[down]), float(sizes[across]))


def take(
    stack: NDArray[np.float64], spacing: tuple[float, float], cut: Cut, *, name: str, label: int, inverted: bool = False
) -> tuple[Iterator[Picture], dict[str, Any]]:
    """The chosen slices of [n, H, W], from 0 (black) to 1, and what was chosen."""
    low, high = cut.window.limits(stack, name, inverted=inverted)
    length = len(stack)
    if cut.slices or length == 1:
        numbers = list(range(*cut.slices.bounds(length, name))) if cut.slices else [0]
    else:
        level = FOREGROUND_LEVEL * (high - low)
        bright = stack < high - level if inverted else stack > low + level
        numbers = np.flatnonzero(bright.mean((1, 2)) >= FOREGROUND_SHARE).tolist()
        if not numbers:
            raise UserError(
                f"{name}: no slice has {FOREGROUND_SHARE:.0%} foreground in the window {low:g},{high:g}: give --slices LO:HI"
            )

    def pictures() -> Iterator[Picture]:
        for number in numbers:
            shown = apply_window(stack[number], low, high)
            yield Picture(f"{name}, slice {number}", 1.0 - shown if inverted else shown, label, spacing)

    facts = {
        "window": [float(f"{value:.9g}") for value in (low, high)],
        "slices": [numbers[0], numbers[-1] + 1],
        "taken": len(numbers),
        "of": length,
    }
    return pictures(), facts


def held_out_note(taken: list[int]) -> str | None:
    """Why a set cut from volumes needs care, given the number of slices of each."""
    if max(taken, default=0) < 2:
        return None
    if len(taken) == 1:
        return "all images are slices of one volume: there is no held-out part, so scores say how well this volume is imitated"
    return (
        f"slices of one volume look alike: no part of these {len(taken)} volumes is held out; "
        "--hold-out 0.1, with the volumes as SOURCE, keeps whole ones out of the training; "
        "where a subject has several, write shards of other subjects"
    )


def medical_import_error(package: str, error: ImportError) -> UserError:
    return UserError(f"reading these volumes needs {package} ({error}): pip install 'scalegan[medical]'")
