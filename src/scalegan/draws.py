"""What is random in a step, on this process: latents, labels, views and directions of its images, by their global index."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scalegan import augment, random
from scalegan.config import Config
from scalegan.sending import send


@dataclass(frozen=True)
class DataFacts:
    """What the networks have to know of the data."""

    shape: tuple[int, int, int]
    """(channels, height, width) of one image."""
    class_counts: tuple[int, ...]
    """Images of each class; empty where there are no labels."""


@dataclass(frozen=True)
class Draws:
    """The random inputs of this process's slice of one step, keyed by global image index (see `random`)."""

    config: Config
    facts: DataFacts
    device: torch.device
    count: int
    """Images of one round on this process."""
    offset: int
    """Place of this process's first image in the global batch."""

    def latents(self, purpose: str, first: int) -> Tensor:
        z = random.normal(self.config.train.seed, f"latents/{purpose}", first, self.count, self.config.model.z_dim)
        return self._send(z)

    def labels(self, purpose: str, first: int) -> Tensor:
        """Labels of generated images follow the data's histogram."""
        if not self.config.model.conditional:
            return torch.full((self.count,), -1, dtype=torch.int64, device=self.device)
        weights = np.asarray(self.facts.class_counts)
        return self._send(random.choice(self.config.train.seed, f"labels/{purpose}", first, self.count, weights))

    def views(self, purpose: str, first: int, p: Tensor | float) -> Tensor | None:
        """What `augment` draws the view of each image by, where each augmentation is done with probability `p`."""
        if not self.config.augment.active:
            return None

        def rows(stream: str, width: int) -> np.ndarray:
            return random.uniform(self.config.train.seed, f"{stream}/{purpose}", first, self.count, width)

        drawn = np.concatenate([rows(stream, width) for stream, _, width in augment.STREAMS], axis=1)
        gates = np.concatenate([rows(stream, width) for _, stream, width in augment.STREAMS], axis=1)
        numbers = [drawn, augment.gates(gates, self.config.augment), np.broadcast_to(augment.NOTHING, drawn.shape)]
        return augment.gated(self._send(np.stack(numbers)), p)

    def mirrored(self, images: Tensor, first: int) -> Tensor:
        """Real images [count, C, H, W], under `data.mirror` half of them, by chance, with left and right exchanged."""
        if not self.config.data.mirror:
            return images
        side = random.uniform(self.config.train.seed, "mirrored", first, self.count, 1)[:, :, None, None]
        return torch.where(self._send(side < 0.5), images.flip(3), images)

    def mixture(self, first: int) -> Tensor:
        """Share [count, 1, 1, 1] of the real image in the mixed one that the gradient penalty looks at."""
        return self._send(
            random.uniform(self.config.train.seed, "mixture", first, self.count, 1).astype(np.float32)[:, :, None, None]
        )

    def offsets(self, purpose: str, first: int) -> Tensor | None:
        """The step [count, C, H, W] along which a slope is taken by a difference, + or - in each pixel alike."""
        if self.config.loss.penalty_form == "exact":
            return None
        pixels = math.prod(self.facts.shape)
        words = random.bits(self.config.train.seed, f"direction/{purpose}", first, self.count, -(-pixels // 64))
        signs = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, count=pixels)
        step = self.config.loss.penalty_step
        return (self._send(signs).view(-1, *self.facts.shape).float() * 2 - 1) * step

    def first(self, images_seen: int, round_: int) -> int:
        return images_seen + self.offset + round_ * self.count

    def _send(self, values: np.ndarray) -> Tensor:
        return send(values, self.device)
