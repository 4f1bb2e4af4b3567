"""The Frechet distance between two sets of features: torchmetrics' class and states, with an exact square root of our own.

    |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr(sqrt(C_a C_b))

The last trace is the sum of the singular values of A^T B for any A A^T = C_a, B B^T = C_b. That form stays symmetric, so
it needs no complex numbers, and it can leave out the directions that the points do not have: the covariance of n of them
has rank n - 1 at most, and the rest of its eigenvalues is rounding, whose square root is no longer small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from scalegan.errors import UserError
from scalegan.evaluation.pairs import check_once, fingerprint
from scalegan.evaluation.team import add_up

NEGATIVE = 1e-4
"""Of the largest variance: one as far below zero is more than rounding, also where it was stored in float32."""


class Features(nn.Module):
    """Stands where torchmetrics expects the network: the features are made outside, once for every metric."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance(FrechetInceptionDistance):
    """torchmetrics' FID on features [n, width], exact to 1e-9 and for any number of images from 2 on.

    `update(features, real=...)` on any number of processes, also none on some, then `compute()` on all of them; or `sync()`
    on all and `distance()` where it is wanted. With the `indices` of the images, 0 to n - 1 of each side, one that comes twice
    is a `UserError`; without, it counts twice.
    """

    def __init__(self, width: int) -> None:
        super().__init__(feature=Features(width), compute_with_cache=False)
        for side in ("real", "fake"):
            self.add_state(f"{side}_seen", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, real: bool, indices: Tensor | None = None) -> None:
        """features [n, width] of real or of generated images; indices int64 [n]."""
        super().update(features, real)
        if indices is not None:
            getattr(self, f"{'real' if real else 'fake'}_seen").add_(fingerprint(indices).to(features.device))

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """All states in one sum over processes; torchmetrics gathers a copy of each process, 100 MB a copy at 2048 features."""
        states = {name: getattr(self, name) for name in self._reductions}
        packed = add_up(torch.cat([state.double().flatten() for state in states.values()]), process_group)
        parts = torch.split(packed, [state.numel() for state in states.values()])
        for (name, state), part in zip(states.items(), parts, strict=True):
            setattr(self, name, part.view(state.shape).to(state.dtype))

    def set_real(self, total: NDArray[np.float64], squares: NDArray[np.float64], count: int) -> None:
        """The real side as sums [width] and [width, width] of `count` images, on one of the processes."""
        self.real_features_sum += torch.from_numpy(total).to(self.real_features_sum.device)
        self.real_features_cov_sum += torch.from_numpy(squares).to(self.real_features_cov_sum.device)
        self.real_features_num_samples += count

    def moments(self, real: bool) -> tuple[Tensor, Tensor, int]:
        """Mean [width], covariance [width, width], both float64 on the CPU, and count of one side.

        Raises `UserError` for fewer than two images, which have no covariance, for features that are no numbers, and for
        indices that are not each there once.
        """
        side = "real" if real else "fake"
        total, squares = (getattr(self, f"{side}_features_{name}").double().cpu() for name in ("sum", "cov_sum"))
        count = int(getattr(self, f"{side}_features_num_samples"))
        if count < 2:
            raise UserError(f"FrechetDistance needs 2 {side} images and was given {count}: give it more")
        if (seen := getattr(self, f"{side}_seen")).any():
            check_once(side, seen, count)
        if not squares.isfinite().all():
            raise UserError(
                f"features of {side} images hold NaN or infinity: the extractor cannot take such images, or its weights are "
                "damaged"
            )
        return *mean_and_covariance(total, squares, count), count

    def compute(self) -> Tensor:
        """Collective: the distance, a float64 scalar."""
        return self.distance()

    def distance(self) -> Tensor:
        """The distance by the states as they are: those of all processes after `sync()`, else of this one."""
        return frechet_distance(*self.moments(real=True), *self.moments(real=False))


def frechet_distance(mean_a: Tensor, cov_a: Tensor, count_a: int, mean_b: Tensor, cov_b: Tensor, count_b: int) -> Tensor:
    """Means [d], covariances [d, d] and the numbers of points they come from -> float64 scalar."""
    return Gaussian.fitted(mean_a, cov_a, count_a).distance(Gaussian.fitted(mean_b, cov_b, count_b))


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to features, in the form in which distances from it are cheap."""

    mean: Tensor
    """[d]"""
    trace: Tensor
    """Of its covariance."""
    factor: Tensor
    """[d, r]: factor @ factor.T is its covariance."""

    @classmethod
    def fitted(cls, mean: Tensor, covariance: Tensor, count: int) -> Gaussian:
        return cls(mean, covariance.trace(), root(covariance, count))

    @classmethod
    def of_sums(cls, total: Tensor, squares: Tensor, count: int) -> Gaussian:
        """From the sum [d] and the sum of outer products [d, d] of `count` points."""
        return cls.fitted(*mean_and_covariance(total, squares, count), count)

    def distance(self, other: Gaussian) -> Tensor:
        overlap: Tensor = torch.linalg.svdvals(self.factor.T @ other.factor).sum()
        squared = (self.mean - other.mean).square().sum() + self.trace + other.trace - 2 * overlap
        return squared.clamp(min=0)  # of equal sets rounding is left, of either sign


def mean_and_covariance(total: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum [d] and sum of outer products [d, d] of `count` points -> mean [d], covariance [d, d] over count - 1."""
    mean = total / count
    return mean, (squares - count * torch.outer(mean, mean)) / (count - 1)


def root(covariance: Tensor, count: int) -> Tensor:
    """[d, d] of `count` points -> [d, r] with root @ root.T = covariance, r <= count - 1. Raises `UserError` for a negative
    variance, which only a file can hold."""
    if 2 * count <= len(covariance):
        return pivoted_cholesky(covariance, count - 1)
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -NEGATIVE * values[-1].abs():
        raise UserError(f"their sigma is no covariance, with a variance of {values[0]:.3g} in one direction")
    rounding = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    rank = max(1, min(count - 1, int((values > rounding).sum())))
    kept: Tensor = vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()
    return kept


def pivoted_cholesky(covariance: Tensor, rank: int) -> Tensor:
    """[d, d] of at most that rank -> [d, r] with r <= rank, at the cost of d r^2 instead of some d^3.

    Each step takes the coordinate that is least explained so far (Higham 2002, section 10.3), so it ends exactly where the
    points have no more directions: what is left over is rounding.
    """
    left = covariance.diagonal().clone()
    rounding = left.max() * len(left) * torch.finfo(left.dtype).eps
    rows = covariance.new_zeros(max(1, rank), len(left))
    for step in range(rank):
        largest, pivot = left.max(0)
        if largest <= rounding:
            return rows[: max(1, step)].T
        explained = rows[:step, pivot] @ rows[:step]
        rows[step] = (covariance[pivot] - explained) / largest.sqrt()
        left = left.sub_(rows[step].square()).clamp_(min=0)
        left[pivot] = 0
    return rows.T
