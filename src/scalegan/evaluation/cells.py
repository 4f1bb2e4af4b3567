"""C_T (Meehan, Chaudhuri & Dasgupta 2020, "A non-parametric test to detect data-copying in generative models").

Are samples nearer to the training images than held-out images are? Mann and Whitney's U, as a z-value, in each of a few cells
of the space, for a generator may copy in one place what it makes up for in another; then the mean over the cells, weighed by
their share of the held-out images. Below -3 or so samples are too near, above 3 too far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scalegan.evaluation.names import CELL_MINIMUM
from scalegan.evaluation.pairs import Side, squared_distances

CELLS = 5
ROUNDS = 20


def find_cells(side: Side) -> Tensor:
    """Collective: centres [k, width] of the training images by Lloyd's k-means, from images spread evenly over their order;
    the same for any number of processes."""
    count = min(CELLS, side.total)
    start = (torch.arange(count) * side.total) // count
    centres = side.rows(start)
    for _ in range(ROUNDS):
        sums, sizes = torch.zeros_like(centres), torch.zeros(count, dtype=torch.float64, device=centres.device)
        cells = cell_of(side, centres)
        for rows, own in side.parts():
            sums.index_add_(0, cells[rows], own)
            sizes.index_add_(0, cells[rows], torch.ones_like(own[:, 0]))
        sums, sizes = side.team.add_up(sums, sizes)
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centres)
    return centres


def cell_of(side: Side, centres: Tensor) -> Tensor:
    """The cell of each image of this process, int64 [n]."""
    cells = torch.zeros(len(side.features), dtype=torch.int64, device=side.features.device)
    for rows, own in side.parts():
        cells[rows] = squared_distances(own, centres).argmin(1)
    return cells


def copying_statistic(fake: Tensor, held_out: Tensor, cells: int) -> dict[str, Tensor]:
    """Rows (distance to the nearest training image, cell) of samples and of held-out images -> C_T, and the cells it is of.

    A cell with fewer than 20 of either says nothing and is left out, as in the paper; if that leaves none, all are one.
    """
    values, weights = [], []
    for cell in range(cells):
        ours, theirs = (rows[rows[:, 1] == cell, 0] for rows in (fake, held_out))
        if min(len(ours), len(theirs)) >= CELL_MINIMUM:
            values.append(rank_test(ours, theirs))
            weights.append(len(theirs))
    if not values:
        values, weights = [rank_test(fake[:, 0], held_out[:, 0])], [1]
    weight = torch.tensor(weights, dtype=torch.float64, device=fake.device)
    return {"c_t": (torch.stack(values) * weight).sum() / weight.sum(), "c_t_cells": weight.new_tensor(len(values))}


def rank_test(first: Tensor, second: Tensor) -> Tensor:
    """z-value of Mann and Whitney's U: how much more often than half the time a number of `first` [n] is larger than one of
    `second` [m]. Equal ones count half."""
    n, m = len(first), len(second)
    first, ordered = first.contiguous(), second.sort().values
    below = torch.searchsorted(ordered, first) + torch.searchsorted(ordered, first, right=True)
    u = below.double().sum() / 2
    z: Tensor = (u - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5
    return z
