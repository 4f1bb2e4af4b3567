"""How sure a Frechet distance is, and what it would be for endlessly many generated images.

The generated images are dealt into 20 groups by their index. Each in turn is left out (the jackknife), and the first 2, 3, ...
20 of them are taken (the extrapolation); sums over groups are all that either needs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scalegan.evaluation.frechet import Gaussian
from scalegan.evaluation.names import SPREAD_GROUPS
from scalegan.evaluation.pairs import TIE, FeatureMetric, Side
from scalegan.evaluation.team import Team

STUDENT_T = 2.093
"""97.5 % of Student's distribution with 19 degrees of freedom, one less than there are groups."""

Sums = tuple[Tensor, Tensor, Tensor]
"""Count, sum [d] and sum of outer products [d, d]."""


class FrechetSpread(FeatureMetric):
    """Interval and extrapolation of the Frechet distance, in float64.

    `update(features, real=..., indices=...)`, then `compute()` -> with `interval` {"fid_se", "fid_low", "fid_high"}, with
    `infinity` {"fid_infinity", "fid_infinity_slope", "fid_infinity_r2"}. The interval is that of other samples of the same
    number from the same generator. Raises `UserError` for fewer than two images a group, and for an extrapolation from fewer
    than four times as many images as features.
    """

    sides = ("fake",)
    real_count: Tensor
    real_sum: Tensor
    real_squares: Tensor

    def __init__(self, width: int, interval: bool = True, infinity: bool = True) -> None:
        super().__init__()
        self.width, self.interval, self.infinity = width, interval, infinity
        self.add_state("real_count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("real_sum", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("real_squares", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, real: bool, indices: Tensor | None = None) -> None:
        if real:
            self.update_sums(*sums_of(features))
        else:
            self.keep("fake", features, indices)

    def update_sums(self, count: Tensor, total: Tensor, squares: Tensor) -> None:
        """Real images of which only the sums are there: count, sum [width] and sum of outer products [width, width]."""
        self.real_count += count
        self.real_sum += total
        self.real_squares += squares

    def compute(self) -> dict[str, Tensor]:
        fake = self.side("fake")
        self.need(fake, "generated", 4 * self.width if self.infinity else 2 * SPREAD_GROUPS)
        count, total, squares = fake.team.add_up(self.real_count, self.real_sum, self.real_squares)
        real = gaussian((count, total, squares))
        found: dict[str, Tensor] = {}
        if self.interval:
            value, error = jackknife(fake, real)
            found |= {"fid_se": error, "fid_low": value - STUDENT_T * error, "fid_high": value + STUDENT_T * error}
        if self.infinity:
            found |= extrapolated(*growing(fake, real, 2 * self.width))
        return found


def sums_of(features: Tensor) -> Sums:
    x = features.double()
    return x.new_tensor(len(x)), x.sum(0), x.T @ x


def packed_sums(side: Side, chosen: Tensor) -> Sums:
    """Collective: the sums of those images of this and all other processes that are `chosen`, bool [n], in one reduction."""
    count, total, squares = sums_of(side.features[chosen])
    rows, columns = torch.triu_indices(*squares.shape, device=squares.device)
    count, total, packed = side.team.add_up(count, total, squares[rows, columns])
    squares[rows, columns] = packed
    squares[columns, rows] = packed
    return count, total, squares


def group_sums(side: Side, group: int) -> Sums:
    """Collective."""
    return packed_sums(side, side.indices % SPREAD_GROUPS == group)


class Shared:
    """Distances that the processes share out: each is asked for on all of them and taken on one."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.values: list[Tensor] = []

    def ask(self, find: Callable[[], Tensor]) -> None:
        mine = len(self.values) % self.team.processes == self.team.rank
        self.values.append(find().cpu() if mine else torch.zeros((), dtype=torch.float64))

    def all(self) -> Tensor:
        """Collective: float64 [n] on the CPU, in the order in which they were asked for."""
        return self.team.add_up(torch.stack(self.values))[0]


def gaussian(sums: Sums) -> Gaussian:
    count, total, squares = sums
    return Gaussian.of_sums(total, squares, int(count))


def distance(sums: Sums, real: Gaussian) -> Tensor:
    return gaussian(sums).distance(real)


def together(one: Sums, other: Sums) -> Sums:
    count, total, squares = (a + b for a, b in zip(one, other, strict=True))
    return count, total, squares


def without(whole: Sums, part: Sums) -> Sums:
    count, total, squares = (of_all - of_part for of_all, of_part in zip(whole, part, strict=True))
    return count, total, squares


def jackknife(fake: Side, real: Gaussian) -> tuple[Tensor, Tensor]:
    """Collective: the distance, and its standard error by leaving out one group at a time (Quenouille, Tukey)."""
    whole, asked = packed_sums(fake, torch.ones_like(fake.indices, dtype=torch.bool)), Shared(fake.team)
    asked.ask(partial(distance, whole, real))
    for group in range(SPREAD_GROUPS):
        asked.ask(partial(distance, without(whole, group_sums(fake, group)), real))
    value, *others = asked.all()
    spread = torch.stack(others).var(correction=0) * (SPREAD_GROUPS - 1)
    return value, spread.sqrt()


def growing(fake: Side, real: Gaussian, smallest: int) -> tuple[Tensor, Tensor]:
    """Collective: numbers of images [n], of `smallest` and more, and the distances of as many [n]."""
    asked, counts = Shared(fake.team), []
    sums: Sums | None = None
    for group in range(SPREAD_GROUPS):
        part = group_sums(fake, group)
        sums = part if sums is None else together(sums, part)
        if sums[0] >= smallest:
            counts.append(sums[0].cpu())
            asked.ask(partial(distance, sums, real))
    return torch.stack(counts), asked.all()


def extrapolated(counts: Tensor, distances: Tensor) -> dict[str, Tensor]:
    """The line distance = infinity + slope / count through the points by least squares, and the share of variance on it: 1
    where distances differ by rounding alone, which a level line explains."""
    x = 1 / counts
    dx, dy = x - x.mean(), distances - distances.mean()
    slope = (dx * dy).sum() / dx.square().sum()
    left, spread = (dy - slope * dx).square().sum(), dy.square().sum()
    level = dy.abs().max() <= TIE * distances.abs().max()
    return {
        "fid_infinity": distances.mean() - slope * x.mean(),
        "fid_infinity_slope": slope,
        "fid_infinity_r2": torch.where(level, torch.ones_like(left), 1 - left / spread),
    }
