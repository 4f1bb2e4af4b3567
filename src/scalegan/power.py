"""Averages of weights by power functions, and any other such average made of a few of them after training.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3 and eq. 123 to 128. After T
steps the weights theta(t) of step t count in proportion to t^gamma: unlike an exponential average of fixed half-life, this
forgets the start by itself, and its width is a share of the run, whatever its length. Times here are in any one unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

WIDEST = 0.25
"""Largest width, as a share of the run, that is taken; gamma is 0 at 0.289, where all steps count alike."""

Profile = tuple[float, float]
"""(std, end): an average of relative width `std` that was read at time `end`."""


def relative_width(gamma: float) -> float:
    """Standard deviation of t under the density (gamma + 1) t^gamma / T^(gamma + 1), as a share of T."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


@cache
def exponent(std: float) -> float:
    """The gamma >= 0 whose relative width is `std`, from above 0 to `WIDEST`: by bisection, as the width falls with gamma."""
    low, high = 0.0, 1 / std  # the width is under 1 / gamma
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if relative_width(middle) > std else (low, middle)
    return high


def part(std: float) -> str:
    """Name of an average in a checkpoint or snapshot."""
    return f"power_{std:g}"


def decay(std: float, step: int) -> float:
    """Weight of the old average in step t = 1, 2, ...: (1 - 1/t)^(gamma + 1).

    By it step i counts (i/t)^(gamma + 1) - ((i - 1)/t)^(gamma + 1), which is the integral of the density over that step.
    """
    return float((1 - 1 / step) ** (exponent(std) + 1))


def overlap(a: Profile, b: Profile) -> float:
    """The integral of the product of two densities, which ends with the earlier of them."""
    (gamma, end), (other_gamma, other_end) = ((exponent(std), end) for std, end in (a, b))
    both = min(end, other_end)
    peak = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
    return float(peak * (both / end) ** gamma * (both / other_end) ** other_gamma * both / (end * other_end))


def mixture(have: Sequence[Profile], want: Profile) -> tuple[NDArray[np.float64], float]:
    """Factors of the averages in `have` whose sum is nearest, in least squares, to the average `want`.

    And how far it is from it: the norm of the difference of the densities as a share of that of `want`. Other than in the
    paper, whose networks do not see the length of their weights, the factors are held to a sum of 1.
    """
    lengths = np.array([math.sqrt(overlap(a, a)) for a in have])
    length = math.sqrt(overlap(want, want))
    products = np.array([[overlap(a, b) for b in have] for a in have]) / np.outer(lengths, lengths)
    sought = np.array([overlap(a, want) for a in have]) / (lengths * length)
    # With a multiplier for the sum: factors are counted in units of length / lengths.
    units = length / lengths
    matrix = np.block([[products, units[:, None]], [units[None, :], np.zeros((1, 1))]])
    factors = np.linalg.solve(matrix, np.append(sought, 1.0))[:-1]
    squared = float(1 - 2 * factors @ sought + factors @ products @ factors)
    return factors * units, math.sqrt(max(0.0, squared))
