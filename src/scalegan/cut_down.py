"""The configuration and the shards of a run, cut down to what `--debug` tries in a minute."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scalegan.config import Config
from scalegan.data.index import Index, content_hash, read_offsets
from scalegan.data.resident import bytes_needed
from scalegan.evaluation.names import best_among, compared

STEPS = 8
"""Steps of the whole runs that are compared; one of them is stopped half-way."""
TRIED = ("ssim", "ms_ssim", "kid", "prdc", "inception_score")
"""Metrics that as few images do for."""
IMAGES = 64
"""Real images that are enough to try everything: the first shards that hold as many are used."""
RESIDENT_GB = 0.05
"""Most memory of resident images; larger first shards are read by offset."""


def cut_index(index: Index, images: int) -> Index:
    """The first shards, as many as hold `images`; written shards are shuffled, so they are like the rest."""
    shards = index.shards[: int(np.searchsorted(index.starts, min(images, index.samples)))]
    labels = np.concatenate([read_offsets(index, number)[:, 2] for number in range(len(shards))])
    counts = tuple(np.bincount(labels, minlength=len(index.classes)).tolist()) if index.labelled else ()
    cut = replace(index, shards=shards, class_counts=counts)
    return replace(cut, sha256=content_hash(cut.content()))


def cut_config(config: Config, index: Index, run: Path) -> Config:
    """Small in width, batch, steps and samples; what decides which code runs stays as it is."""
    rounds = min(config.train.accumulate, 2)
    together = min(config.train.batch // config.train.accumulate, 8)
    batch = rounds * together
    cuda = config.train.device != "cpu" and torch.cuda.is_available()
    data, model, train, log, evaluation = config.data, config.model, config.train, config.log, config.evaluation
    most = {"width": 8, "max_width": 32, "critic_width": 8, "critic_max_width": 32, "critic_stem": 8}
    widths = {name: min(getattr(model, name), width) for name, width in most.items()}
    tried = [name for name in evaluation.wanted if name in TRIED]
    return replace(
        config,
        run=str(run),
        data=replace(
            data,
            reader="stream" if data.reader == "stream" or bytes_needed(index) > RESIDENT_GB * 1e9 else "resident",
            memory_gb=max(RESIDENT_GB, data.memory_gb),
            workers=min(data.workers, 1),
            streams=math.gcd(data.streams, batch),
            window=min(data.window, 16),
        ),
        model=replace(
            model,
            **widths,
            group_width=math.gcd(model.group_width, *(2 * widths[name] for name in model.grouped)),
            class_start=min(model.class_start, batch),
            class_ramp=min(model.class_ramp, 4 * batch),
            norm_group=fitted(model.norm_group, together),
            std_group=fitted(model.std_group, together) if model.critic == "stylegan2" else model.std_group,
        ),
        # So that steps with and without a penalty come.
        loss=replace(config.loss, penalty_every=min(config.loss.penalty_every, 2), path_every=min(config.loss.path_every, 2)),
        optim=replace(
            config.optim,
            warmup=min(config.optim.warmup, batch),
            critic_steps=min(config.optim.critic_steps, 2),
            freeze_critic=min(config.optim.freeze_critic, 1),
        ),
        # So that it ends, and what begins with next to nothing, as augmentation does, is tried in full.
        burn_in=replace(config.burn_in, images=min(config.burn_in.images, STEPS // 2 * batch)),
        # So that an adaptive p gets somewhere, and the stop falls between two of its adjustments.
        augment=replace(config.augment, speed=min(config.augment.speed, STEPS * batch), every=min(config.augment.every, 3)),
        # What a resume gives is compared to the bit, which CUDA alone has to be asked for.
        train=replace(train, images=STEPS * batch, batch=batch, accumulate=rounds, deterministic=cuda),
        # Lines of metrics that end on both sides of the stop at half time, and not at it.
        log=replace(
            log,
            every=3 * batch,
            samples=4 * batch,
            checkpoint=5 * batch,
            snapshots=4 * batch,
            grid=min(log.grid, 16),
            wandb="off",
            step_losses=True,
        ),
        evaluation=replace(
            evaluation,
            every=0,
            samples=min(evaluation.samples, 32),
            real=min(compared(evaluation.real, index.samples), IMAGES),
            batch=min(evaluation.batch, 16),
            metrics=",".join(tried),
            best=best_among(evaluation.best, tried),
        ),
    )


def fitted(group: int, images: int) -> int:
    """The same group of images, or all of them where it does not divide them; 0 stays 0."""
    return images if group and images % group else group
