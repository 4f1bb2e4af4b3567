"""Perceptual path length (Karras et al. 2019, section 4.1): how much images change with a small step in the latents.

    l = E[ d(g(path(t)), g(path(t + eps))) / eps^2 ],  t ~ U(0, 1)                (eq. 2 and 3)

A path leads from one random latent to another: in z on a sphere, in w straight. d is LPIPS, of images as the generator makes
them, in float. As in the authors' programs the lowest and highest hundredth of the steps is left out of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from scalegan import random
from scalegan.errors import UserError
from scalegan.evaluation.network import DIVERGED
from scalegan.evaluation.real import Progress
from scalegan.evaluation.team import Team
from scalegan.float32 import computing_in
from scalegan.models.noise import noise_keys
from scalegan.models.resize import Resize, area
from scalegan.sampling import BLOCK
from scalegan.walks import ALONG, spaces

EPSILON = 1e-4
MOST_STEPS = 50_000
"""As many as papers on StyleGAN2 take."""
SIDE = 256
"""Shorter side that larger images are brought to, by the means of areas."""
TRIMMED = 1
"""Hundredths of the steps that are left out at either end."""


@dataclass(frozen=True)
class LatentPaths:
    """Steps on paths between random latents of a generator; step i of a seed is the same whoever asks for it.

    Both ends of a step have one label, and one noise where the generator draws any from its latents' bits: another noise
    would move the image by more than the step.
    """

    network: nn.Module
    """In evaluation mode."""
    z_dim: int
    class_counts: Sequence[int]
    """Of the data that labels are drawn by; empty without classes."""
    seed: int

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def ends(self, space: str, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Images of steps first to first + count at their beginning and end: float32 [count, C, H, W] each."""
        latents = torch.from_numpy(random.normal(self.seed, "paths", first, count, 2 * self.z_dim)).to(self.device)
        t = torch.from_numpy(random.uniform(self.seed, "paths/t", first, count, 1)).to(self.device)
        labels = torch.full((count,), -1, dtype=torch.int64)
        if self.class_counts:
            labels = torch.from_numpy(random.choice(self.seed, "paths/labels", first, count, np.asarray(self.class_counts)))
        ends = latents.chunk(2, dim=1)
        keys = noise_keys(ends[0])
        a, b, labels, keys = (torch.cat([x, x]) for x in (*ends, labels.to(self.device), keys))
        images = ALONG[space](self.network, a, b, torch.cat([t, t + EPSILON]), labels, keys)
        first_images, second_images = images.float().chunk(2)
        return first_images, second_images


class PathLength(Metric):
    """The mean over steps in one space of latents, without the lowest and highest hundredth.

    `update(starts, ends, first)` on any number of processes, each step once, then `compute()` -> {name, f"{name}_se"}, the
    mean and its standard error. Raises `UserError` where a step was not given once, or an image has no distance.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    lengths: Tensor
    given: Tensor

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], steps: int, name: str = "ppl_z") -> None:
        """`distance` takes images float32 [n, C, H, W] twice and gives [n]."""
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.distance, self.name = distance, name
        self.add_state("lengths", torch.zeros(steps, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("given", torch.zeros(steps, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, starts: Tensor, ends: Tensor, first: int) -> None:
        """Images from -1 to 1, float32 [n, C, H, W], at the beginning and the end of steps first to first + n."""
        if not 0 <= first <= first + len(starts) <= len(self.lengths):
            raise UserError(
                f"PathLength was made for {len(self.lengths)} steps: {len(starts)} from step {first} on are too many"
            )
        steps = slice(first, first + len(starts))
        self.lengths[steps] += self.distance(shrunk(starts), shrunk(ends)).to(self.lengths) / EPSILON**2
        self.given[steps] += 1

    def compute(self) -> dict[str, float]:
        """Collective."""
        lengths, given = (Team() if self._is_synced else Team.of_world()).add_up(self.lengths, self.given)
        if (given != 1).any():
            step = int((given != 1).nonzero()[0])
            raise UserError(
                f"PathLength was given step {step} of {len(given)} {int(given[step])} times: give it each step once"
            )
        if not lengths.isfinite().all():
            raise UserError(DIVERGED)
        mean, error = trimmed_mean(lengths.cpu().numpy())
        return {self.name: mean, f"{self.name}_se": error}


def path_length(
    paths: LatentPaths,
    distance: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    team: Team,
    progress: Progress = lambda what, done, count: None,
) -> dict[str, float]:
    """Collective: `ppl_z` and, where there is a w, `ppl_w`, with their standard errors; the same on every process.

    `distance` takes images float32 [n, C, H, W] twice and gives [n]. Raises `UserError` where an image has no distance.
    """
    found: dict[str, float] = {}
    for space in spaces(paths.network):
        metric = PathLength(distance, steps, f"ppl_{space}")
        with team.as_one():
            for first, count in team.blocks(steps, BLOCK // 2):  # both ends of a step are made in one pass
                progress(f"steps in {space}", first, steps)
                with computing_in("float32", paths.device):  # TF32 would move images by more than the step does
                    starts, ends = paths.ends(space, first, count)
                metric.update(starts, ends, first)
        found |= metric.compute()
    return found


def shrunk(images: Tensor) -> Tensor:
    """Images [n, C, H, W] -> the same with a shorter side of at most `SIDE`."""
    size = images.shape[2], images.shape[3]
    small: Tensor = Resize(size, shrunk_size(*size), area).to(images.device)(images)
    return small


def shrunk_size(height: int, width: int) -> tuple[int, int]:
    times = min(1.0, SIDE / min(height, width))
    return round(times * height), round(times * width)


def trimmed_mean(lengths: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of lengths [n], n > 1, without the lowest and highest hundredth, and its standard error.

    The error is by the variance of the values drawn in to where the others are cut off (Tukey & McLaughlin 1963).
    """
    low = np.percentile(lengths, TRIMMED, method="lower")
    high = np.percentile(lengths, 100 - TRIMMED, method="higher")
    kept = lengths[(low <= lengths) & (lengths <= high)]
    spread = float(np.clip(lengths, low, high).std(ddof=1))
    return float(kept.mean()), spread / (len(kept) / len(lengths) * len(lengths) ** 0.5)


def provenance(height: int, width: int, steps: int) -> dict[str, Any]:
    """What a record says of how path lengths of images of a size were taken."""
    size = shrunk_size(height, width)
    resize = f"area from {height}x{width} to {size[0]}x{size[1]}" if size != (height, width) else "none"
    return {"ppl_steps": steps, "ppl_resize": resize}
