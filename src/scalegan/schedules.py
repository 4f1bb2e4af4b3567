"""Learning rate and EMA decay as pure functions of images seen."""

from __future__ import annotations

import math

from scalegan.config import EmaConfig, OptimConfig


def rate_factor(optim: OptimConfig, images_seen: int, total_images: int) -> float:
    """What the base learning rate is multiplied by after `images_seen` of `total_images`."""
    rise = min(1.0, images_seen / optim.warmup) if optim.warmup else 1.0
    done = min(1.0, images_seen / total_images)
    fall = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[optim.schedule]
    if optim.schedule == "constant":
        return rise
    return rise * (optim.final_lr + (1.0 - optim.final_lr) * fall)


def half_life(ema: EmaConfig, images_seen: int) -> float:
    """Half-life of the averaged weights in images: short at first, so that the start is soon forgotten."""
    return min(float(ema.half_life), ema.ramp * images_seen) if ema.ramp else float(ema.half_life)


def ema_decay(ema: EmaConfig, images_seen: int, batch: int) -> float:
    """Weight of the old average in a step of `batch` images: 0.5 ^ (batch / half-life)."""
    life = half_life(ema, images_seen)
    return 0.5 ** (batch / life) if life > 0 else 0.0
