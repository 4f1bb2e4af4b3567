"""Adaptive augmentation: its probability p follows how far the critic over-fits (Karras et al. 2020b, section 3)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from scalegan.augment_config import AugmentConfig


class Adaptive:
    """p and the signs since it was last adjusted, both on the device, which is never waited for.

    Signs are counted in whole numbers, so that their sum, and with it p, is the same in whatever order it is taken.
    """

    def __init__(self, config: AugmentConfig, batch: int, boundary: float, device: torch.device) -> None:
        """`boundary`: logit from which on the critic takes an image for real."""
        self.config, self.boundary = config, boundary
        self.p = torch.zeros((), dtype=torch.float64, device=device)
        self.signs = torch.zeros(2, dtype=torch.int64, device=device)  # their sum, and how many
        self.stride = batch * config.every / config.speed
        self.pinned = False

    def see(self, logits: Tensor) -> None:
        """Count the signs of the logits [N] or [N, K] of this process's real images."""
        if self.config.target:
            self.signs[0] += (logits > self.boundary).sum() - (logits < self.boundary).sum()
            self.signs[1] += logits.numel()

    def after(self, steps: int) -> None:
        """Adjust p where one is due after so many steps; to be called on every process."""
        if not self.config.target or steps % self.config.every:
            return
        total, number = self._everyones().double()
        self.p += torch.sign(total / number - self.config.target) * self.stride
        self.p.clamp_(0.0, self.config.max_p)
        self.signs.zero_()

    def warning(self) -> str | None:
        """What to tell once p has risen as far as it may. Waits for the device."""
        before, self.pinned = self.pinned, self.config.target > 0 and float(self.p) >= self.config.max_p
        if not self.pinned or before:
            return None
        return (
            f"augment/p is at its largest, {self.config.max_p:g}, and the critic still knows the real images by heart: use "
            "more images or a pipe with more in it, raise loss.r1_gamma, or make the critic narrower"
        )

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; to be called on every process."""
        return {"p": self.p, "signs": self._everyones()}

    def restore(self, state: dict[str, Tensor], rank: int) -> None:
        """However many processes there are now: the first takes all signs."""
        self.p.copy_(state["p"])
        self.signs.copy_(state["signs"] if rank == 0 else torch.zeros(2))

    def _everyones(self) -> Tensor:
        signs = self.signs.clone()
        if dist.is_initialized():
            dist.all_reduce(signs)
        return signs
