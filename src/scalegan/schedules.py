"""What follows the clock: learning rate, betas, penalties, augmentation and averaging as pure functions of images seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scalegan.config import BurnInConfig, Config, EmaConfig, OptimConfig
from scalegan.model_config import ModelConfig


@dataclass(frozen=True)
class Scheduled:
    """The settings of one step."""

    rate: float
    """What the base learning rates are multiplied by."""
    betas_g: tuple[float, float]
    betas_d: tuple[float, float]
    penalty: float
    """What the weights of the penalties are multiplied by."""
    augment: float
    """Probability of each augmentation."""
    half_life: float
    """Of the averaged weights, in images."""
    classes: float
    """How far the classes have come in, from 0 to 1."""


def scheduled(config: Config, images_seen: int) -> Scheduled:
    burn_in, optim = config.burn_in, config.optim
    return Scheduled(
        rate=rate_factor(optim, images_seen, config.train.images) * multiple(burn_in, burn_in.lr, images_seen),
        betas_g=(optim.betas_g[0], beta2(burn_in, optim.betas_g[1], images_seen)),
        betas_d=(optim.betas_d[0], beta2(burn_in, optim.betas_d[1], images_seen)),
        penalty=multiple(burn_in, burn_in.gamma, images_seen),
        augment=min(1.0, config.augment.p * multiple(burn_in, burn_in.augment, images_seen)),
        half_life=half_life(config.ema, images_seen) * multiple(burn_in, burn_in.half_life, images_seen),
        classes=class_strength(config.model, images_seen),
    )


def rate_factor(optim: OptimConfig, images_seen: int, total_images: int) -> float:
    """What the base learning rate is multiplied by after `images_seen` of `total_images`."""
    rise = min(1.0, images_seen / optim.warmup) if optim.warmup else 1.0
    done = min(1.0, images_seen / total_images)
    fall = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[optim.schedule]
    if optim.schedule == "constant":
        return rise
    return rise * (optim.final_lr + (1.0 - optim.final_lr) * fall)


def class_strength(model: ModelConfig, images_seen: int) -> float:
    """0 up to `class_start`, then evenly to 1 (Shahbazi et al. 2022, eq. 3)."""
    if images_seen < model.class_start:
        return 0.0
    return min(1.0, (images_seen - model.class_start) / model.class_ramp) if model.class_ramp else 1.0


def half_life(ema: EmaConfig, images_seen: int) -> float:
    """Half-life of the averaged weights in images: short at first, so that the start is soon forgotten."""
    return min(float(ema.half_life), ema.ramp * images_seen) if ema.ramp else float(ema.half_life)


def ema_decay(half_life: float, batch: int) -> float:
    """Weight of the old average in a step of `batch` images: 0.5 ^ (batch / half-life)."""
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


def still_to_burn(burn_in: BurnInConfig, images_seen: int) -> float:
    """1 at the start, 0 from the end of the burn-in on, along a cosine (Huang et al. 2024, appendix on schedules)."""
    done = min(1.0, images_seen / burn_in.images) if burn_in.images else 1.0
    return 0.5 * (1.0 + math.cos(math.pi * done))


def multiple(burn_in: BurnInConfig, start: float, images_seen: int) -> float:
    """From `start` to 1."""
    return 1.0 + (start - 1.0) * still_to_burn(burn_in, images_seen)


def beta2(burn_in: BurnInConfig, end: float, images_seen: int) -> float:
    return end + (burn_in.beta2 - end) * still_to_burn(burn_in, images_seen) if burn_in.beta2 else end
