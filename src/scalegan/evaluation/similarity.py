"""Metrics of images: what the largest similarity to a real image is, how alike samples are, and how varied.

Each is a `torchmetrics.Metric`, whose `compute()` is collective: call it on every process, also on one without images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from scalegan.errors import UserError
from scalegan.evaluation.class_diversity import SUMS, ClassSums, diversity_in_class
from scalegan.evaluation.lpips import PairDistance
from scalegan.evaluation.ms_ssim import ms_ssim
from scalegan.evaluation.pairs import FeatureMetric, squared_distances
from scalegan.evaluation.ssim import AT_ONCE, THUMBNAIL, best_matches, ssim, thumbnails
from scalegan.evaluation.team import Team


@dataclass(frozen=True)
class Gallery:
    """Real images, to find in them the nearest ones to a sample without reading all."""

    thumbs: Tensor
    """uint8 [m, 32, 32]"""
    read: Callable[[NDArray[np.int64]], Tensor]
    """Places [k] of `thumbs` -> images uint8 [k, C, H, W]."""

    @classmethod
    def of(cls, images: Tensor) -> Gallery:
        """Of images uint8 [m, C, H, W] that are in memory."""
        return cls(thumbnails(images), lambda places: images[torch.from_numpy(places)])


class BestMatch(Metric):
    """The largest SSIM, or other `measure`, of any sample to its 16 nearest real images by 32x32 thumbnails.

    `update(images, gallery)`, then `compute()` -> {name: float64}. Alone it proves nothing: the mean of the real images has
    a large one too. Raises `UserError` for no samples.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    best: Tensor

    def __init__(self, name: str = "ssim_max", measure: Callable[[Tensor, Tensor], Tensor] = ssim) -> None:
        """`measure` takes images uint8 [n, C, H, W] twice and gives [n]."""
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.name, self.measure = name, measure
        self.add_state("best", torch.tensor(-torch.inf, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, images: Tensor, gallery: Gallery) -> None:
        """Samples uint8 [n, C, H, W]."""
        if len(images):
            found = best_matches(images, gallery.thumbs, gallery.read, self.measure).max()
            self.best = torch.maximum(self.best, found.double().to(self.best.device))

    def compute(self) -> dict[str, Tensor]:
        """Collective."""
        best = (Team() if self._is_synced else Team.of_world()).together(self.best[None]).max()
        if best == -torch.inf:
            raise UserError("BestMatch needs a sample and was given none: give it one")
        return {self.name: best}


class PairSimilarity(PairDistance):
    """Mean MS-SSIM, or other `similarity`, over pairs of images: the larger, the less varied they are.

    `update(images)`, then `compute()` -> {name, f"{name}_se"}, the mean and its standard error, float64. Raises `UserError`
    for fewer than two pairs.
    """

    higher_is_better = False

    def __init__(self, name: str = "ms_ssim_pairs", similarity: Callable[[Tensor, Tensor], Tensor] = ms_ssim) -> None:
        super().__init__(similarity, name)

    def update(self, images: Tensor) -> None:  # type: ignore[override]
        """Images uint8 [n, C, H, W]: those half of them apart are a pair, as neighbours may be near duplicates."""
        half = len(images) // 2
        super().update(images[:half], images[half : 2 * half])


class Diversity(FeatureMetric):
    """Root mean square difference of the 32x32 thumbnails of two images, in grey levels: the mean over all pairs.

    `update(images)`, then `compute()` -> {name: float64}. Raises `UserError` for fewer than two images.
    """

    sides: tuple[str, ...] = ("fake",)
    higher_is_better = True

    def __init__(self, name: str = "diversity") -> None:
        super().__init__()
        self.name = name

    def update(self, images: Tensor, indices: Tensor | None = None) -> None:  # type: ignore[override]
        """Images uint8 [n, C, H, W]."""
        self.keep("fake", thumbnails(images).flatten(1), indices)

    def compute(self) -> dict[str, Tensor]:
        """Collective."""
        made = self.side("fake")
        self.need(made, "generated", 2)
        total = torch.zeros((), dtype=torch.float64, device=made.features.device)
        for visiting, _, _ in made.visits():
            for _, own in made.parts():  # an image's difference from itself is 0
                total += squared_distances(own, visiting).sqrt().sum()
        [total] = made.team.add_up(total)
        return {self.name: total / (made.total * (made.total - 1)) / THUMBNAIL}


class DiversityInClass(Metric):
    """The same within classes, as the root of the mean square over pairs, beside that of real images.

    `update(images, labels, real)`, then `compute()` -> {"diversity_in_class", "diversity_in_class_real"}, means over the
    classes that have two images on either side, float; nothing where there is no such class.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    fake: Tensor
    real: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        for name in ("fake", "real"):
            self.add_state(name, torch.zeros(classes, SUMS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor, labels: Tensor, real: bool) -> None:
        """Images uint8 [n, C, H, W] and their classes int64 [n]."""
        sums = ClassSums.within(self.real if real else self.fake)
        for some, classes in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True):  # type: ignore[no-untyped-call]
            sums.add(thumbnails(some), classes)

    def compute(self) -> dict[str, float]:
        """Collective."""
        team = Team() if self._is_synced else Team.of_world()
        made, real = team.add_up(self.fake, self.real)
        return diversity_in_class(ClassSums.within(made), ClassSums.within(real))
