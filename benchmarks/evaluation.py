"""Seconds that a Frechet distance of few images takes beside scipy's matrix square root, and those of the other metrics.

    python benchmarks/evaluation.py

Both get the same means and covariances, of 490 points in 2048 dimensions, the same threads and the same repeats. scipy is not
needed by scalegan: install it beside (it comes with the extra `parity`). The other metrics are of random features.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import common

TARGET = 20.0


def features(count: int, width: int, seed: int) -> Tensor:
    """float64 [count, width] with a falling spectrum, as features of networks have it."""
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.normal(size=(count, width)) * np.arange(1, width + 1) ** -0.6 + 0.4)


def timed(function: Callable[[], Any], repeat: int) -> tuple[Any, float]:
    """The value, and the fewest seconds of some calls."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        value = function()
        seconds.append(time.perf_counter() - start)
    return value, min(seconds)


def directly(a: Tensor, b: Tensor) -> float:
    """The distance from the points themselves, without a covariance: what both are held against."""
    x, y = (a - a.mean(0)) / (len(a) - 1) ** 0.5, (b - b.mean(0)) / (len(b) - 1) ** 0.5
    overlap = torch.linalg.svdvals(x @ y.T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * overlap)


def square_root(count: int, width: int) -> bool:
    from scipy.linalg import sqrtm

    from scalegan.evaluation.frechet import frechet_distance

    a, b = features(count, width, 1), features(count, width, 2)
    means, covariances, exact = (a.mean(0), b.mean(0)), (a.T.cov(), b.T.cov()), directly(a, b)
    ours, own_seconds = timed(
        lambda: float(frechet_distance(means[0], covariances[0], count, means[1], covariances[1], count)), repeat=3
    )

    def scipys() -> float:
        root = sqrtm((covariances[0] @ covariances[1]).numpy()).real
        squared = (means[0] - means[1]).square().sum() + covariances[0].trace() + covariances[1].trace()
        return float(squared - 2 * np.trace(root))

    theirs, their_seconds = timed(scipys, repeat=3)
    for name, value, seconds in (("ours", ours, own_seconds), ("scipy.linalg.sqrtm", theirs, their_seconds)):
        print(f"{name:<20} {seconds:8.3f} s   relative error {abs(value / exact - 1):.1e}", flush=True)
    return common.verdict(f"sqrtm's time to ours, {count} points in {width} dimensions", their_seconds / own_seconds, TARGET)


def others(count: int, width: int) -> None:
    from scalegan.evaluation.frechet_spread import FrechetSpread
    from scalegan.evaluation.kid import KernelDistance
    from scalegan.evaluation.memorisation import Memorisation
    from scalegan.evaluation.prdc import PrecisionRecall

    sides = {side: features(count, width, seed).float() for seed, side in enumerate(("real", "held_out", "fake"))}
    print(f"metrics of {count} images on each side, {width} features:")
    metrics = KernelDistance(), PrecisionRecall(), Memorisation(), FrechetSpread(width, infinity=False)
    for metric in metrics:
        for side, rows in sides.items():
            if side in metric.sides:
                metric.feed(side, rows, torch.arange(count), None)
        if isinstance(metric, FrechetSpread):
            metric.update(sides["real"], real=True)
        _, seconds = timed(metric.compute, repeat=1)
        print(f"{type(metric).__name__:<20} {seconds:8.3f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its own choice)")
    parser.add_argument("--images", type=int, default=1000, help="of each side, for the other metrics (default: 1000)")
    options = parser.parse_args()
    # The libraries under numpy and scipy read this when they are loaded, and torch's own setting does not reach them.
    if os.environ.get("OMP_NUM_THREADS") != str(options.threads):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": str(options.threads)})
    torch.set_num_threads(options.threads)
    print(common.headline(threads=options.threads))
    others(options.images, 1280)
    return 0 if square_root(490, 2048) else 1


if __name__ == "__main__":
    sys.exit(main())
