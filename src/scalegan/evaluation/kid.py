"""The Kernel distance: squared maximum mean discrepancy under k(x, y) = (x.y / width + 1)^3 (Binkowski et al. 2018).

    A / m(m-1) + B / n(n-1) - 2 C / mn

with A, B the sums of k over pairs of different images of one side and C over pairs of both: unbiased for any number of
images, so below 0 half the time where both sides are alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan.evaluation.names import SUBSET
from scalegan.evaluation.pairs import FeatureMetric, Side

DEGREE = 3
COEFFICIENT = 1.0
SUBSETS = 100
SUBSET_SEED = 2020
"""torch-fidelity's, so that it draws the same subsets."""


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """[n, width], [m, width] -> [n, m]."""
    return (x @ y.T / x.shape[1] + COEFFICIENT) ** DEGREE


def row_sums(queries: Side, others: Side, same: bool = False) -> Tensor:
    """Collective: the sum of k from each image of this process to all others, [n]; with `same` not to itself."""
    sums = torch.zeros(len(queries.features), dtype=torch.float64, device=queries.features.device)
    for features, indices, _ in others.visits():
        for rows, own in queries.parts():
            values = kernel(own, features)
            if same:
                values = values.masked_fill_(queries.indices[rows, None] == indices, 0.0)
            sums[rows] += values.sum(1)
    return sums


class KernelDistance(FeatureMetric):
    """The unbiased estimate over all pairs, and its standard error by the jackknife over the images of both sides.

    `update(features, real=...)`, then `compute()` -> {"kid", "kid_se"}: float64 scalars. Raises `UserError` for fewer than
    three images of a side.
    """

    def compute(self) -> dict[str, Tensor]:
        real, fake = self.side("real"), self.side("fake")
        self.need(real, "real", 3)
        self.need(fake, "generated", 3)
        within = row_sums(real, real, same=True), row_sums(fake, fake, same=True)
        across = row_sums(real, fake), row_sums(fake, real)
        a, b, c = real.team.add_up(torch.stack([part.sum() for part in (*within, across[0])]))[0]
        m, n = real.total, fake.total
        without_real = discrepancy(a - 2 * within[0], b, c - across[0], m - 1, n)
        without_fake = discrepancy(a, b - 2 * within[1], c - across[1], m, n - 1)
        variance = jackknife_variance(real, without_real) + jackknife_variance(fake, without_fake)
        return {"kid": discrepancy(a, b, c, m, n), "kid_se": variance.sqrt()}


def discrepancy(a: Tensor, b: Tensor, c: Tensor, m: int, n: int) -> Tensor:
    """The formula above, of sums of k."""
    return a / (m * (m - 1)) + b / (n * (n - 1)) - 2 * c / (m * n)


def jackknife_variance(side: Side, values: Tensor) -> Tensor:
    """Of values [n] of this process, each taken without one image of the side; for a two-sample statistic it is the sum of
    both sides' (Arvesen 1969)."""
    mean = side.team.add_up(values.sum())[0] / side.total
    return side.team.add_up((values - mean).square().sum())[0] * (side.total - 1) / side.total


class SubsetKernelDistance(FeatureMetric):
    """torch-fidelity's form: mean and standard deviation over 100 subsets of 1,000 images on each side.

    The subsets are drawn as torch-fidelity does with generated images as its first input, by the order of their indices.
    They overlap, so their spread is no error of the mean. Raises `UserError` for fewer than `subset_size` images of a side.
    """

    def __init__(self, subset_size: int = SUBSET, subsets: int = SUBSETS) -> None:
        super().__init__()
        self.subset_size, self.subsets = subset_size, subsets

    def compute(self) -> dict[str, Tensor]:
        real, fake = self.side("real"), self.side("fake")
        self.need(real, "real", self.subset_size)
        self.need(fake, "generated", self.subset_size)
        values = torch.zeros(self.subsets, dtype=torch.float64)
        for number, chosen in enumerate(self.draws(fake.total, real.total)):
            x, y = (side.rows(torch.from_numpy(places)) for side, places in zip((fake, real), chosen, strict=True))
            if number % real.team.processes == real.team.rank:
                values[number] = subset_value(x, y)
        values = real.team.add_up(values)[0]
        return {"kid_subsets": values.mean(), "kid_subsets_sd": values.std(correction=0)}

    def draws(self, fake: int, real: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        generator = np.random.RandomState(SUBSET_SEED)
        for _ in range(self.subsets):
            yield (
                generator.choice(fake, self.subset_size, replace=False),
                generator.choice(real, self.subset_size, replace=False),
            )


def subset_value(x: Tensor, y: Tensor) -> Tensor:
    """float64 [n, width] twice -> the unbiased estimate."""
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    n = len(x)
    return discrepancy(xx.sum() - xx.trace(), yy.sum() - yy.trace(), xy.sum(), n, n)
