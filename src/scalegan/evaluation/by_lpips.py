"""What an evaluation measures by LPIPS: how varied samples are beside real images, and how smoothly they follow the latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan.data.order import PAIRED, draw, permute
from scalegan.evaluation import path_length
from scalegan.evaluation.lpips import PairDistance, PerceptualDistance
from scalegan.evaluation.path_length import LatentPaths
from scalegan.evaluation.real import Progress, RealImages
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig
from scalegan.sampling import BLOCK

PAIRS = 500
"""Of samples and of real images, no image in two of them: where pairs differ by 0.1, a standard error of 0.0045."""

Read = Callable[[NDArray[np.int64]], Tensor]
"""Numbers [n] -> images uint8 [n, C, H, W]."""


def figures(
    generator: Callable[[int, int], Tensor],
    images: RealImages,
    config: EvaluationConfig,
    distance: PerceptualDistance,
    paths: LatentPaths | None,
    team: Team,
    progress: Progress,
) -> dict[str, Any]:
    """Collective: the figures of the metrics that are asked for, and what they depend on. Raises `UserError` on all."""
    shape = images.index.height, images.index.width
    found = distance.provenance(*shape)
    if "lpips" in config.wanted:
        # A generator's images are independent in any order, and cheapest in their own.
        mixed = drawn_pairs(config.samples) if paths is None else first_pairs(config.samples)
        found |= pair_distance("lpips_pairs", distance, mixed, lambda numbers: take(generator, numbers), team, progress)
        found |= pair_distance("lpips_pairs_real", distance, drawn_pairs(images.count), images.at, team, progress)
    if "ppl" in config.wanted:
        assert paths is not None, "`evaluator.check` lets no other through"
        steps = min(config.samples, path_length.MOST_STEPS)
        found |= path_length.path_length(paths, distance, steps, team, progress)
        found |= path_length.provenance(*shape, steps)
    return found


def first_pairs(images: int) -> NDArray[np.int64]:
    """Neighbours [n, 2] among the first of so many images."""
    count = min(PAIRS, images // 2)
    return np.arange(2 * count).reshape(count, 2)


def drawn_pairs(images: int) -> NDArray[np.int64]:
    """A fixed random choice of pairs [n, 2] of so many images: neighbours of a data set may be near duplicates."""
    pairs: NDArray[np.int64] = permute(first_pairs(images), images, images, draw(0, PAIRED))
    return pairs


def take(generator: Callable[[int, int], Tensor], numbers: NDArray[np.int64]) -> Tensor:
    """Generated images by number, those that follow each other at once."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return torch.cat([generator(int(run[0]), len(run)) for run in runs])


def pair_distance(
    name: str, distance: PerceptualDistance, pairs: NDArray[np.int64], read: Read, team: Team, progress: Progress
) -> dict[str, float]:
    """Collective: mean distance over pairs [n, 2], and its standard error. Raises `UserError` on all."""
    metric = PairDistance(distance, name)
    with team.as_one():
        for first, count in team.blocks(len(pairs), BLOCK // 2):
            progress(name.replace("_", " "), first, len(pairs))
            both = read(pairs[first : first + count].ravel())
            metric.update(both[::2], both[1::2])
    return {key: float(value) for key, value in metric.compute().items()}
