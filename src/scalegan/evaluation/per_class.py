"""The Frechet distance of each class by itself, for generators that are told the class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scalegan.errors import UserError
from scalegan.evaluation.frechet_spread import STUDENT_T, Shared, Sums, gaussian, jackknife, packed_sums
from scalegan.evaluation.names import SPREAD_GROUPS
from scalegan.evaluation.pairs import LabelledMetric, Side, hashed

FEWEST = 4
"""Real images of a class whose halves still have a covariance."""


class PerClassDistance(LabelledMetric):
    """`update(features, labels, real=...)`, then `compute()` -> figures by class, {class: distance}, and their means.

    - "fid_per_class", "fid_per_class_mean";
    - "fid_per_class_half" of as many generated images as a half of the class's real ones, or of all where they are fewer,
      against one random half of these; and "fid_per_class_floor" of as many real images of the other half against the same;
      where a class has 4 real images; with "_mean" behind the name as well;
    - with `interval` "fid_per_class_low" and "fid_per_class_high", where a class has 40 generated images: 95 % for other
      samples of the same generator, by the jackknife.

    The distances are shared out among the processes. Raises `UserError` for a class with fewer than two images of a side,
    and for labels that are no class.
    """

    def __init__(self, classes: tuple[str, ...], interval: bool = False) -> None:
        super().__init__(classes)
        self.interval = interval

    def update(  # type: ignore[override]
        self, features: Tensor, labels: Tensor, real: bool, indices: Tensor | None = None
    ) -> None:
        """features [n, width] and labels int64 [n] of real or of generated images; indices int64 [n]."""
        self.keep_labelled("real" if real else "fake", features, labels, indices)

    def feed(self, side: str, features: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        assert labels is not None  # `per_class` is refused without any
        self.update(features, labels, real=side == "real", indices=indices)

    def compute(self) -> dict[str, Any]:
        real, fake = self.by_class("real"), self.by_class("fake")
        for name, ours, theirs in zip(self.classes, real, fake, strict=True):
            if min(ours.total, theirs.total) < 2:
                raise UserError(
                    f"the distance of class {name} needs 2 real and 2 generated images and there are {ours.total} and "
                    f"{theirs.total}: raise evaluation.samples, or take per_class out of evaluation.metrics"
                )
        found = {"fid_per_class": self.distances(real, fake)} | self.at_half(real, fake)
        means = {f"{name}_mean": torch.stack(list(by.values())).mean() for name, by in found.items()}
        if self.interval:
            found |= self.intervals(real, fake)
        return means | {name: {own: float(value) for own, value in by.items()} for name, by in found.items()}

    def by_class(self, name: str) -> list[Side]:
        """Collective: the images of each class, numbered from 0 in a random order that goes by their indices alone."""
        side = self.side(name)
        counts, own = self.count(side, name).long(), self.labels(name, side)
        labels = torch.zeros(side.total, dtype=torch.float64, device=own.device).index_copy(0, side.indices, own.double())
        labels = side.team.add_up(labels)[0].long()
        shuffled = hashed(torch.arange(side.total, device=own.device)).argsort()
        in_turn = shuffled[labels[shuffled].argsort(stable=True)]
        place = torch.empty_like(in_turn)
        place[in_turn] = torch.arange(side.total, device=own.device) - (counts.cumsum(0) - counts)[labels[in_turn]]
        chosen = [own == number for number in range(len(self.classes))]
        return [
            Side(side.features[ours], place[side.indices[ours]], int(count), side.team)
            for ours, count in zip(chosen, counts, strict=True)
        ]

    def distances(self, real: list[Side], fake: list[Side]) -> dict[str, Tensor]:
        """Collective."""
        asked = Shared(real[0].team)
        for ours, theirs in zip(real, fake, strict=True):
            asked.ask(between(sums_until(ours), sums_until(theirs)))
        return dict(zip(self.classes, asked.all(), strict=True))

    def at_half(self, real: list[Side], fake: list[Side]) -> dict[str, dict[str, Tensor]]:
        """Collective."""
        found: dict[str, dict[str, Tensor]] = {}
        halves = [(name, a, b) for name, a, b in zip(self.classes, real, fake, strict=True) if a.total >= FEWEST]
        for figure in ("floor", "half") if halves else ():
            asked = Shared(real[0].team)
            for _, ours, theirs in halves:
                half = ours.total // 2
                count = min(theirs.total, half)
                other = sums_until(theirs, count) if figure == "half" else sums_until(ours, half + count, half)
                asked.ask(between(sums_until(ours, half), other))
            names = (name for name, _, _ in halves)
            found[f"fid_per_class_{figure}"] = dict(zip(names, asked.all(), strict=True))
        return found

    def intervals(self, real: list[Side], fake: list[Side]) -> dict[str, dict[str, Tensor]]:
        """Collective."""
        found: dict[str, dict[str, Tensor]] = {"fid_per_class_low": {}, "fid_per_class_high": {}}
        for name, ours, theirs in zip(self.classes, real, fake, strict=True):
            if theirs.total >= 2 * SPREAD_GROUPS:
                value, error = jackknife(theirs, gaussian(sums_until(ours)))
                found["fid_per_class_low"][name] = value - STUDENT_T * error
                found["fid_per_class_high"][name] = value + STUDENT_T * error
        return found


def sums_until(side: Side, end: int | None = None, first: int = 0) -> Sums:
    """Collective: of the images of a class from `first` to `end`, or to the last."""
    return packed_sums(side, (side.indices >= first) & (side.indices < (side.total if end is None else end)))


def between(one: Sums, other: Sums) -> Callable[[], Tensor]:
    return lambda: gaussian(one).distance(gaussian(other))
