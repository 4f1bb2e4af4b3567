"""What to try against what a diagnosis found: settings of `scalegan train`, made from those that the run had."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scalegan.config import Config
from scalegan.loss_config import DIFFERENCES
from scalegan.no_effect import set_by_hand

OTHER_NORM = {"dcgan": "none", "resnet": "spectral", "biggan": "spectral", "fastgan": "spectral", "projected": "spectral"}
"""In place of batch norm in a critic."""
OFTEN = 0.8
"""Probability from about which on the generator learns augmentations too."""
FURTHER = {"cutout": 0.5, "scale": 0.2, "translate": 0.125, "aniso": 0.2, "brightness": 0.2, "contrast": 0.5}
"""Augmentations that any images allow, and how much of each."""


def variety_in_class(config: Config) -> str:
    """Against one picture a class: a reward for others (Yang et al. 2019), or classes that come in later."""
    return f"{'' if config.loss.diversity_weight else '--loss.diversity_weight 2, or '}{classes_later(config)}"


def classes_later(config: Config) -> str:
    """What the classes share is learnt first (Shahbazi et al. 2022)."""
    if config.model.ramped:
        return f"--model.class_ramp {2 * max(config.model.class_start, config.model.class_ramp)}"
    images = config.train.images // 10
    return f"--model.class_start {images} --model.class_ramp {images}"


def rates(config: Config, factor_g: float, factor_d: float) -> str:
    optim = config.optim
    changed = (("lr_g", optim.lr_g, factor_g), ("lr_d", optim.lr_d, factor_d))
    return " ".join(f"--optim.{name} {rate * factor:.2g}" for name, rate, factor in changed if factor != 1)


def keep_up(config: Config) -> str:
    return f"{rates(config, 1.0, 4.0)}, or {rates(config, 0.25, 1.0)}; or --optim.critic_steps {config.optim.critic_steps + 1}"


def more_penalty(config: Config) -> str:
    """Of a critic with batch norm only in a new run without it: a penalty and batch norm disagree (Gulrajani et al. 2017)."""
    if config.loss.gp_weight:
        return f"--loss.gp_weight {config.loss.gp_weight * 3:.2g}"
    penalty = f"--loss.r1_gamma {config.loss.r1_gamma * 3 or 0.1:.2g}"
    batch_norm = config.model.norm_of_critic == "batch" and not config.model.discriminator
    return f"{penalty} --model.critic_norm {OTHER_NORM[config.model.critic]} (a new run)" if batch_norm else penalty


def more_augmentation(config: Config, line: Mapping[str, Any]) -> str:
    """`line` is the last of the metrics, which has the p and the sign that an adaptive probability got to."""
    pipe = "" if config.augment.active else "--augment.pipe photo (or another, as the images allow) "
    if config.augment.target:
        return more_adaptive(config, line.get("augment/p") or 0.0, line.get("sign/real") or 0.0)
    if config.loss.name not in DIFFERENCES and not config.loss.own and config.burn_in.augment == 1:
        found = " --augment.p 1" if "augment.p" in set_by_hand(config) else ""  # which adaptation finds by itself
        return f"as much augmentation as it takes, {pipe}--augment.target 0.6{found}"
    # Where p cannot follow the critic, it is set by hand; above 0.8 augmentations leak into what is generated.
    if config.augment.active and config.augment.p >= OFTEN:
        return further_augmentation(config)
    often = min(OFTEN, 2 * config.augment.p) if config.augment.active else 0.2
    return f"more augmentation, {pipe}--augment.p {often:.2g}"


def more_adaptive(config: Config, p: float, sign: float) -> str:
    """p rises by the same step however far the sign is above its target: while it does, a lower target changes nothing."""
    augment = config.augment
    if p >= augment.max_p:
        return further_augmentation(config)
    if sign > augment.target:
        speed = max(1, min(augment.speed, config.train.images) // 4)
        return f"augmentation whose p ({p:.2g} by now) rises faster, --augment.speed {speed}"
    return f"more augmentation, --augment.target {augment.target * 0.8:.2g}"


def further_augmentation(config: Config) -> str:
    off = [f"--augment.{name} {strength}" for name, strength in FURTHER.items() if not getattr(config.augment, name)]
    return f"stronger {f'or further augmentations, such as {off[0]}' if off else 'augmentations'}"


def smaller(config: Config) -> str:
    """A critic of half the width at each resolution or, in whole groups of channels, about that; empty where there is none."""
    model = config.model
    step = model.group_width // math.gcd(model.group_width, 2) if model.critic == "r3gan" else 1
    widths = {name: getattr(model, name) for name in ("critic_width", "critic_max_width", "critic_stem")}
    halved = {name: width // 2 // step * step or step for name, width in widths.items() if width}
    if halved["critic_width"] >= model.critic_width:
        return ""
    return " ".join(f"--model.{name} {width}" for name, width in halved.items() if width < widths[name])
