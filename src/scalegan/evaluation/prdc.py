"""How many samples lie among the real images, and how many real images among the samples: fidelity and variety apart.

Around each image of a side lies a ball that reaches to its k-th nearest other image of that side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scalegan.evaluation.names import NEIGHBOURS
from scalegan.evaluation.pairs import FeatureMetric, Side, inside, neighbour_distances, squared_distances


class PrecisionRecall(FeatureMetric):
    """Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    precision: share of samples in any ball of a real image; recall: share of real images in any ball of a sample;
    density: real images' balls that a sample lies in, over k, on average; coverage: share of real images whose ball holds a
    sample. Balls are open, as in the authors' package `prdc`: an image at their very edge is outside.

    `update(features, real=...)`, then `compute()` -> the four, float64 scalars. Raises `UserError` for k images or fewer.
    """

    def __init__(self, neighbours: int = NEIGHBOURS) -> None:
        super().__init__()
        self.neighbours = neighbours

    def compute(self) -> dict[str, Tensor]:
        real, fake = self.side("real"), self.side("fake")
        self.need(real, "real", self.neighbours + 1)
        self.need(fake, "generated", self.neighbours + 1)
        real_radii, fake_radii = neighbour_distances(real, self.neighbours), neighbour_distances(fake, self.neighbours)
        around_fakes, _ = balls(fake, real, real_radii)
        around_reals, to_fakes = balls(real, fake, fake_radii)
        counts = [(around_fakes > 0).sum(), around_fakes.sum(), (around_reals > 0).sum(), inside(to_fakes, real_radii).sum()]
        precise, balls_entered, recalled, covered = real.team.add_up(torch.stack(counts))[0]
        return {
            "precision": precise / fake.total,
            "recall": recalled / real.total,
            "density": balls_entered / (self.neighbours * fake.total),
            "coverage": covered / real.total,
        }


def balls(queries: Side, others: Side, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Collective: the balls of `others`, of squared `radii` [m], that each image of this process lies in, int64 [n], and its
    squared distance to the nearest of their centres, [n]."""
    size, device = len(queries.features), queries.features.device
    count = torch.zeros(size, dtype=torch.int64, device=device)
    least = torch.full((size,), torch.inf, dtype=torch.float64, device=device)
    for features, _, limits in others.visits(radii):
        for rows, own in queries.parts():
            squared = squared_distances(own, features)
            count[rows] += inside(squared, limits).sum(1)
            least[rows] = torch.minimum(least[rows], squared.amin(1))
    return count, least
