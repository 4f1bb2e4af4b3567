"""What a line of samples.jsonl says of its grid: whether the samples are alike, beside what training images are."""

from __future__ import annotations

import math
from typing import Any

ALIKE = 0.35
"""Diversity of samples, of all or within classes, as a share of real images': 0.7 to 1.1 in healthy runs, 0.01 to 0.3 in
collapsed ones."""
TWINS = 0.2
"""Distance to the nearest other sample as a share of real images': a few pictures over and over have 0, and a diversity that
may be high."""


def share(grid: dict[str, Any], name: str) -> float:
    """A distance among samples as a share of that among training images."""
    real = float(grid[f"{name}_real"])
    return float(grid[name]) / real if real else math.inf


def too_low(grid: dict[str, Any]) -> list[str]:
    """What speaks for collapse. Of classes only grids of a generator that is told them tell, where there are two of one."""
    limits = {"diversity": ALIKE, "diversity_in_class": ALIKE, "nearest_sample": TWINS}
    return [name for name, least in limits.items() if name in grid and share(grid, name) < least]


def is_alike(grid: dict[str, Any]) -> bool:
    return bool(too_low(grid))


def only_in_class(grid: dict[str, Any]) -> bool:
    found = too_low(grid)
    return "diversity_in_class" in found and "diversity" not in found


def alike(grid: dict[str, Any]) -> str:
    in_class = f"those of one class by {share(grid, 'diversity_in_class'):.0%}, " if "diversity_in_class" in grid else ""
    return (
        f"samples differ by {share(grid, 'diversity'):.0%} of what training images do, {in_class}and from the nearest other "
        f"one by {share(grid, 'nearest_sample'):.0%}"
    )
