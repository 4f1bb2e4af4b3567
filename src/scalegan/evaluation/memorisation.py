"""Whether samples repeat training images: everything that can be told by holding them against images never trained on.

Each figure has its control. A large distance to the training images proves nothing by itself, and neither does a small one:
held-out images of the same source lie near them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scalegan.evaluation.cells import cell_of, copying_statistic, find_cells
from scalegan.evaluation.names import CELL_MINIMUM
from scalegan.evaluation.pairs import TIE, FeatureMetric, Nearest, Side, nearest

QUANTILE = 0.05
"""Held-out images that are nearest to training images: what is nearer than these is counted as a near copy."""
CLOSEST = 8
"""Pairs that are shown."""
MIFID_THRESHOLD = 0.1
"""Cosine distance under which Kaggle's distance is made larger."""
MIFID_EPSILON = 1e-14


class Memorisation(FeatureMetric):
    """Authenticity (Alaa et al. 2022), C_T (Meehan et al. 2020), near copies by cosine, distances to the nearest images, and
    the closest pairs; docs/evaluation.md has the meaning of each.

    `update(features, side, indices)` with side "real" (training), "held_out" or "fake"; `compute()` -> figures, float64
    scalars, and "closest": [(generated, training, distance), ...] by index. Raises `UserError` for fewer than 20 generated
    or held-out images.
    """

    sides = ("real", "held_out", "fake")

    def update(self, features: Tensor, side: str, indices: Tensor | None = None) -> None:  # type: ignore[override]
        """features [n, width] of one side; indices int64 [n]."""
        self.keep(side, features, indices)

    def feed(self, side: str, features: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        self.update(features, side, indices)

    def compute(self) -> dict[str, Any]:
        real, held_out, fake = (self.side(name) for name in self.sides)
        self.need(real, "training", 2)
        self.need(held_out, "held-out", CELL_MINIMUM)
        self.need(fake, "generated", CELL_MINIMUM)
        own = nearest(real, real, apart=True).squared
        to_real, held_to_real = nearest(fake, real, own), nearest(held_out, real, own)
        to_held = nearest(fake, held_out)
        centres = find_cells(real)
        in_cells = [
            real.team.together(torch.stack([near.squared, cell_of(side, centres).double()], 1))
            for side, near in ((fake, to_real), (held_out, held_to_real))
        ]
        figures: dict[str, Any] = {
            "authenticity": authenticity(fake, to_real),
            "authenticity_held_out": authenticity(held_out, held_to_real),
            "nearer_to_training": share(fake, to_real.squared < to_held.squared),
            "nearer_to_training_expected": real.total / (real.total + held_out.total),
            "closest": closest(fake, to_real),
        }
        figures |= copying_statistic(in_cells[0], in_cells[1], len(centres))
        figures |= near_copies(real, held_out, fake)
        for name, side, near in (
            ("nearest_training", fake, to_real),
            ("nearest_held_out", fake, to_held),
            ("nearest_training_held_out", held_out, held_to_real),
        ):
            figures[name] = side.team.together(near.squared.sqrt()).quantile(0.5)
        return figures


def share(side: Side, chosen: Tensor) -> Tensor:
    """Collective: of the images of a side those `chosen`, bool [n] of this process."""
    return side.team.add_up(chosen.sum())[0] / side.total


def authenticity(side: Side, near: Nearest) -> Tensor:
    """Share of images that are farther from their nearest training image than that is from its nearest other one (equation
    for A_j of Alaa et al. 2022), which is in `near.extra`."""
    return share(side, near.squared > near.extra * (1 + TIE))


def near_copies(real: Side, held_out: Side, fake: Side) -> dict[str, Tensor]:
    """Collective: share of samples that are nearer to a training image, by the cosine of their features, than 95 % of the
    held-out images are, and the share of held-out images themselves.

    At no distance a sample is a copy, also where so many of the held-out images are copies that none can be nearer than they.
    """
    team = real.team
    to_training = [team.together(cosine_distances(side, real).smallest) for side in (fake, held_out)]
    limit = to_training[1].quantile(QUANTILE)
    nearer = [((distances < limit * (1 - TIE)) | (distances == 0)).double().mean() for distances in to_training]
    return {"near_copies": nearer[0], "near_copies_held_out": nearer[1], "near_copies_distance": limit}


@dataclass(frozen=True)
class Cosines:
    """Of each image of this process, [n]: the smallest 1 - cos and the smallest 1 - |cos| to any image of another set."""

    smallest: Tensor
    absolute: Tensor


def cosine_distances(queries: Side, others: Side) -> Cosines:
    """Collective."""
    size, device = len(queries.features), queries.features.device
    largest = torch.full((2, size), -torch.inf, dtype=torch.float64, device=device)
    for features, _, _ in others.visits():
        unit = F.normalize(features)
        for rows, own in queries.parts():
            cosines = F.normalize(own) @ unit.T
            best = torch.stack([cosines.amax(1), cosines.abs().amax(1)])
            largest[:, rows] = torch.maximum(largest[:, rows], best)
    smallest = 1 - largest
    return Cosines(*smallest.masked_fill_(smallest < TIE, 0.0))


class MemorisationInformedDistance(FeatureMetric):
    """What MiFID (Bai et al. 2021) divides the Frechet distance by, in the direction of Kaggle's competition: from each
    GENERATED image the smallest 1 - |cos| to any training image, on average.

    torchmetrics' MIFID goes the other way, from each training image to its nearest generated one, and so does not see a
    generator that copies a few. `compute()` -> {"memorisation_distance", "mifid_factor"}; MiFID is FID times the factor.
    """

    def compute(self) -> dict[str, Tensor]:
        real, fake = self.side("real"), self.side("fake")
        self.need(real, "real", 1)
        self.need(fake, "generated", 1)
        smallest = real.team.together(cosine_distances(fake, real).absolute)
        distance = smallest.sort().values.mean()
        thresholded = torch.where(distance < MIFID_THRESHOLD, distance, torch.ones_like(distance))
        return {"memorisation_distance": distance, "mifid_factor": 1 / (thresholded + MIFID_EPSILON)}


def closest(fake: Side, near: Nearest) -> list[tuple[int, int, float]]:
    """Collective: (generated, training, distance) of the samples nearest to a training image, nearest first."""
    rows = torch.stack([near.squared, fake.indices.double(), near.index.double()], 1)
    order = near.squared.argsort(stable=True)[:CLOSEST]
    found = sorted(fake.team.together(rows[order]).tolist())[:CLOSEST]
    return [(int(generated), int(training), squared**0.5) for squared, generated, training in found]
