"""Which intensities become black and white, and which slices of a volume are taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scalegan.errors import UserError


@dataclass(frozen=True)
class Window:
    """`low` becomes 0 and `high` becomes 1, linearly, in float64; what lies outside is clipped."""

    kind: Literal["range", "percentile", "dicom"]
    low: float = 0.0
    high: float = 0.0

    def limits(self, values: NDArray[np.float64], name: str, *, inverted: bool = False) -> tuple[float, float]:
        """Lowest and highest value to tell apart. Percentiles are of the foreground: all but the darkest value.

        That is the lowest or, where high values are dark (`inverted`), the highest; percentiles count from there.
        """
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise UserError(f"{name} has {bad} values that are no numbers (NaN or infinite): repair it first")
        if self.kind == "range":
            return self.low, self.high
        background = values.max() if inverted else values.min()
        foreground = values[values != background]
        if not foreground.size:
            raise UserError(f"{name} has the same intensity {background:g} everywhere: leave it out")
        shares = [100 - self.high, 100 - self.low] if inverted else [self.low, self.high]
        low, high = (float(v) for v in np.percentile(foreground, shares))
        if high <= low:  # a mask: its one foreground value is white
            return (low, float(background)) if inverted else (float(background), high)
        return low, high

    def __str__(self) -> str:
        if self.kind == "dicom":
            return "dicom"
        mark = "p" if self.kind == "percentile" else ""
        return f"{mark}{self.low:g},{mark}{self.high:g}"


def apply_window(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """values [...] -> the same shape, from 0 to 1."""
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def parse_window(text: str) -> Window:
    """`-1000,400`, `p1,p99` or `dicom`.

    >>> str(parse_window("p1,p99.5"))
    'p1,p99.5'
    """
    if text == "dicom":
        return Window("dicom")
    hint = "give LO,HI such as 0,1500, percentiles such as p1,p99, or dicom"
    parts = text.split(",")
    percentile = all(part.startswith("p") for part in parts)
    try:
        low, high = (float(part.removeprefix("p") if percentile else part) for part in parts)
    except ValueError:
        raise UserError(f"--window {text}: {hint}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"--window {text}: the first number must be below the second")
    if percentile and not (low >= 0 and high <= 100):
        raise UserError(f"--window {text}: percentiles go from p0 to p100")
    return Window("percentile" if percentile else "range", low, high)


@dataclass(frozen=True)
class Slices:
    """Part of an axis: from `low`, up to but without `high`; numbers of slices, or per cent."""

    low: float | None
    high: float | None
    percent: bool

    def bounds(self, length: int, name: str) -> tuple[int, int]:
        """First slice, and the one behind the last."""
        scale = length / 100 if self.percent else 1
        low = 0 if self.low is None else round(self.low * scale)
        high = length if self.high is None else round(self.high * scale)
        if not 0 <= low < high <= length:
            raise UserError(f"--slices {self}: {name} has {length} slices along this axis: choose from 0:{length}")
        return low, high

    def __str__(self) -> str:
        mark = "%" if self.percent else ""
        low, high = ("" if v is None else f"{v:g}{mark}" for v in (self.low, self.high))
        return f"{low}:{high}"


def parse_slices(text: str) -> Slices:
    """`40:150`, `30%:80%`, `:100`.

    >>> parse_slices("25%:75%").bounds(200, "x.nii")
    (50, 150)
    """
    hint = "give LO:HI as numbers of slices, such as 40:150, or per cent, such as 30%:80%"
    parts = text.split(":")
    if len(parts) != 2:
        raise UserError(f"--slices {text}: {hint}")
    marks = {part.endswith("%") for part in parts if part}
    if len(marks) > 1:
        raise UserError(f"--slices {text}: one end is in per cent and one is not: {hint}")
    percent = marks == {True}
    try:
        numbers: list[Any] = [(float(p.rstrip("%")) if percent else int(p)) if p else None for p in parts]
    except ValueError:
        raise UserError(f"--slices {text}: {hint}") from None
    low, high = numbers
    if (low is not None and low < 0) or (high is not None and high <= (low or 0)) or (percent and (high or 0) > 100):
        raise UserError(f"--slices {text}: {hint}")
    return Slices(low, high, percent)
