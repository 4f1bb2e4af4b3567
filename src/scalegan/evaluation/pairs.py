"""Metrics of pairs of images: features stay with the process that made them, and blocks of them visit the others.

Each metric built on this is a `torchmetrics.Metric` on given features. Its states are concatenated ones, but `compute()` is
collective and gathers none: call it on every process, also on one that had no images.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from scalegan.errors import UserError
from scalegan.evaluation.team import Team

OWN = 1024
"""Rows of this process that are held against a visiting block at once."""
SAME = 1e-12
"""Squared distances under this share of the squared norms are 0: float32 features cannot tell such images apart."""
TIE = 1e-9
"""Relative difference of squared distances that is none: a tie must not be decided by rounding."""


@dataclass(frozen=True)
class Side:
    """One set of images, spread over the processes."""

    features: Tensor
    """[n, width] of this process; n may be 0."""
    indices: Tensor
    """int64 [n]: which of all the images they are."""
    total: int
    """Images of all processes."""
    team: Team

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """This process' rows, some at a time: where they are, and float64 [at most 1024, width]."""
        for first in range(0, len(self.features), OWN):
            rows = slice(first, first + OWN)
            yield rows, self.features[rows].double()

    def visits(self, extra: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Every image of every process, a block at a time: features [b, width], indices [b] and `extra`, a number of each."""
        extra = torch.zeros(len(self.features)) if extra is None else extra
        for block in self.team.visits(self.features, self.indices[:, None], extra[:, None]):
            yield block[:, :-2], block[:, -2].long(), block[:, -1]

    def rows(self, wanted: Tensor) -> Tensor:
        """The features of images `wanted` [k], on every process: float64 [k, width]."""
        place = torch.full((self.total,), -1, dtype=torch.int64)
        place[self.indices.cpu()] = torch.arange(len(self.indices))
        place = place[wanted]
        found = self.features.new_zeros(len(wanted), self.features.shape[1], dtype=torch.float64)
        ours = place >= 0
        found[ours.to(found.device)] = self.features[place[ours].to(found.device)].double()
        return self.team.add_up(found)[0]


class FeatureMetric(Metric):
    """What the metrics of given features have in common: `update` on any number of processes, then `compute` on all of them.

    Give `update` the indices of the images (0 to n - 1 over all processes) where a value should not depend on the number of
    processes though it goes by the order of images; by default they are numbered process by process. An index that comes
    twice, as a padded loader makes it, is a `UserError`.
    """

    full_state_update = False
    is_differentiable = False
    sides: tuple[str, ...] = ("real", "fake")

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        for side in self.sides:
            self.add_state(f"{side}_features", [], dist_reduce_fx="cat")
            self.add_state(f"{side}_indices", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool, indices: Tensor | None = None) -> None:
        """features [n, width] of real or of generated images; indices int64 [n]."""
        self.keep("real" if real else "fake", features, indices)

    def feed(self, side: str, features: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        """`update` in a form that all metrics of the package share: `side` is one of `sides`."""
        self.update(features, real=side == "real", indices=indices)

    def keep(self, side: str, features: Tensor, indices: Tensor | None) -> None:
        if indices is None:
            indices = torch.full((len(features),), -1, dtype=torch.int64)
        getattr(self, f"{side}_features").append(features)
        getattr(self, f"{side}_indices").append(indices.to(features.device))

    def side(self, name: str) -> Side:
        """Collective: the images of one side over all processes. Raises `UserError` for indices that are not each once."""
        team = Team.of_world()
        features, indices = getattr(self, f"{name}_features"), getattr(self, f"{name}_indices")
        if len(features):
            features, indices = dim_zero_cat(features), dim_zero_cat(indices)
        else:  # what the others have tells the width; there is no dtype to ask for
            features = torch.zeros(0, 0, device=self.device)
            indices = torch.zeros(0, dtype=torch.int64, device=self.device)
        counts, widths, unnumbered = team.by_process(*features.shape, int((indices < 0).sum()))
        total, first = sum(counts), sum(counts[: team.rank])
        features = features.reshape(len(features), max(widths))
        if any(unnumbered):
            indices = torch.arange(first, first + len(features), device=features.device)
        check_once(name, team.add_up(fingerprint(indices))[0], total)
        return Side(features, indices, total, team)

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """torchmetrics would gather the features of all processes on each, and fail where one of them has none."""
        raise UserError(
            f"{type(self).__name__} has no sync(), as features stay on their process: call compute() on every process instead"
        )

    def need(self, side: Side, name: str, least: int) -> None:
        if side.total < least:
            raise UserError(f"{type(self).__name__} needs {least} {name} images and was given {side.total}: give it more")

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Collective: the figures by name."""


class LabelledMetric(FeatureMetric):
    """What the metrics that go by class have in common: images with a label each."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        for side in self.sides:
            self.add_state(f"{side}_labels", [], dist_reduce_fx="cat")

    def keep_labelled(self, side: str, features: Tensor, labels: Tensor, indices: Tensor | None) -> None:
        self.keep(side, features, indices)
        getattr(self, f"{side}_labels").append(labels.to(features.device))

    def labels(self, name: str, side: Side) -> Tensor:
        """int64 [n] of this process' images of `side`, whose name is `name`."""
        kept = getattr(self, f"{name}_labels")
        return dim_zero_cat(kept) if len(kept) else side.indices

    def count(self, side: Side, name: str) -> Tensor:
        """Collective: images of each class, float64 [classes]. Raises `UserError` for labels that are no class."""
        labels = self.labels(name, side)
        known = labels[(labels >= 0) & (labels < len(self.classes))]
        counts = side.team.add_up(one_hot(known, len(self.classes)).sum(0))[0]
        if int(counts.sum()) != side.total:
            raise UserError(
                f"{side.total - int(counts.sum())} labels of {name} images are no class, which are 0 to "
                f"{len(self.classes) - 1}: give update() others, or leave those images out"
            )
        return counts


def hashed(numbers: Tensor) -> Tensor:
    """int64 [n] -> int64 [n] that look random, modulo 2^64 (the finaliser of MurmurHash3, on numbers of odd steps)."""
    x = numbers * -7046029254386353131 + 1
    for factor in (-49064778989728563, -4265267296055464877):
        x = (x ^ (x >> 33)) * factor
    return x ^ (x >> 33)


def fingerprint(indices: Tensor) -> Tensor:
    """int64 [n] -> float64 [5]: how many they are, and the sums of each 16 bits of their hashes. Those of parts add up to that
    of the whole exactly, and other numbers have others but for one chance in 2^64."""
    parts = [hashed(indices) >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    return torch.stack([torch.ones_like(indices), *parts]).sum(1).double()


def check_once(name: str, found: Tensor, total: int) -> None:
    """Raises `UserError` unless images of the fingerprint `found` are 0 to total - 1, each once."""
    if not torch.equal(found.cpu(), fingerprint(torch.arange(total))):
        raise UserError(
            f"the {total} {name} images are not each there once: give update() their indices from 0 to {total - 1}, "
            "and no image twice (a loader that pads its last batch does that)"
        )


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """float64 [n, width], [m, width] -> [n, m]; those of copies are 0."""
    a, b = x.square().sum(1)[:, None], y.square().sum(1)[None]
    squared = a + b - 2 * (x @ y.T)
    return squared.masked_fill_(squared <= SAME * (a + b), 0.0)


def inside(squared: Tensor, radii: Tensor) -> Tensor:
    """Whether squared distances are smaller than squared radii; a tie is not."""
    return squared < radii * (1 - TIE)


@dataclass(frozen=True)
class Nearest:
    """Of each image of this process, its nearest one of another set."""

    squared: Tensor
    """[n]: squared distance."""
    index: Tensor
    """int64 [n]: which image it is."""
    extra: Tensor
    """[n]: its number `extra`."""


def nearest(queries: Side, others: Side, extra: Tensor | None = None, apart: bool = False) -> Nearest:
    """Collective. Of two of the same distance the one with the smaller index counts; with `apart`, none is its own nearest."""
    size, device = len(queries.features), queries.features.device
    best = Nearest(
        torch.full((size,), torch.inf, dtype=torch.float64, device=device),
        torch.full((size,), others.total, dtype=torch.int64, device=device),
        torch.zeros(size, dtype=torch.float64, device=device),
    )
    for features, indices, numbers in others.visits(extra):
        for rows, own in queries.parts():
            squared = squared_distances(own, features)
            if apart:
                squared = squared.masked_fill_(queries.indices[rows, None] == indices, torch.inf)
            smallest = squared.amin(1, keepdim=True)
            index, at = indices.expand_as(squared).masked_fill(squared > smallest, others.total).min(1)
            smallest = smallest[:, 0]
            nearer = (smallest < best.squared[rows]) | ((smallest == best.squared[rows]) & (index < best.index[rows]))
            for kept, new in ((best.squared, smallest), (best.index, index), (best.extra, numbers[at])):
                kept[rows] = torch.where(nearer, new, kept[rows])
    return best


def neighbour_distances(side: Side, k: int) -> Tensor:
    """Collective: squared distance [n] of each image of this process to its k-th nearest other one."""
    size, device = len(side.features), side.features.device
    found = torch.full((size, k), torch.inf, dtype=torch.float64, device=device)
    for features, indices, _ in side.visits():
        for rows, own in side.parts():
            squared = squared_distances(own, features)
            squared = squared.masked_fill_(side.indices[rows, None] == indices, torch.inf)
            found[rows] = torch.cat([found[rows], squared], 1).topk(k, largest=False).values
    return found[:, -1]
