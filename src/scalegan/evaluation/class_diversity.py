"""How varied the images of one class are: what a generator that draws one picture a class has lost, whose samples as a whole
are as varied as real ones.

Of sums, so that every generated image counts, in whichever process it is made: of integers in float64, which are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scalegan.evaluation.ssim import THUMBNAIL

PIXELS = THUMBNAIL**2
SUMS = PIXELS + 2
"""Numbers that are kept of a class."""


@dataclass(frozen=True)
class ClassSums:
    """Of the thumbnails of each class."""

    counts: Tensor
    """[classes]"""
    pixels: Tensor
    """[classes, 1024]"""
    squares: Tensor
    """[classes], over all pixels"""

    @classmethod
    def within(cls, table: Tensor) -> ClassSums:
        """Views of float64 [classes, `SUMS`]: what is added goes into it."""
        return cls(table[:, 0], table[:, 2:], table[:, 1])

    @classmethod
    def none(cls, classes: int) -> ClassSums:
        return cls.within(torch.zeros(classes, SUMS, dtype=torch.float64))

    @classmethod
    def of(cls, thumbs: Tensor, labels: Tensor, classes: int) -> ClassSums:
        sums = cls.none(classes)
        sums.add(thumbs, labels)
        return sums

    def add(self, thumbs: Tensor, labels: Tensor) -> None:
        """uint8 [n, 32, 32] and their classes int64 [n]."""
        pixels, classes = thumbs.to(self.pixels.device).flatten(1).double(), labels.to(self.pixels.device)
        self.counts.index_add_(0, classes, torch.ones_like(pixels[:, 0]))
        self.pixels.index_add_(0, classes, pixels)
        self.squares.index_add_(0, classes, pixels.square().sum(1))

    @property
    def measurable(self) -> Tensor:
        """bool [classes]: of one image there is no diversity."""
        return self.counts > 1

    def diversity(self) -> Tensor:
        """Root mean square difference of two images of a class over all pairs, in grey levels [classes]; nan where a class
        has none: the mean square over pairs is 2 (n sum x^2 - (sum x)^2) / (n (n - 1))."""
        pairs = self.counts * (self.counts - 1)
        spread = self.counts * self.squares - self.pixels.square().sum(1)
        return torch.where(self.measurable, (2 * spread / pairs / PIXELS).clamp(min=0).sqrt(), torch.nan)


def diversity_in_class(made: ClassSums, real: ClassSums) -> dict[str, float]:
    """The mean over the classes that have two images on either side; nothing where there are none."""
    both = made.measurable & real.measurable
    if not both.any():
        return {}
    return {
        "diversity_in_class": float(made.diversity()[both].mean()),
        "diversity_in_class_real": float(real.diversity()[both].mean()),
    }
