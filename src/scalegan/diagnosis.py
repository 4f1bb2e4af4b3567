"""Is this mode collapse? What the record of a run says about its training, in words, with the figures and what to try.

Pure functions of the lines that a run has written. The thresholds stand well away from what healthy runs do, so that a
verdict is worth acting on; what lies between is left unsaid. Each was seen on runs made to fail in that way
(tests/unit/test_diagnosed_runs.py), and none on healthy ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scalegan.config import Config
from scalegan.grids import alike, is_alike, only_in_class, share, too_low
from scalegan.loss_config import DIFFERENCES
from scalegan.remedies import keep_up, more_augmentation, more_penalty, rates, smaller, variety_in_class
from scalegan.settings import read_config
from scalegan.tracking import read_lines

Lines = Sequence[dict[str, Any]]

COLLAPSE = "collapse"
OVERFITTING = "discriminator overfitting"
TOO_STRONG = "discriminator too strong"
TOO_WEAK = "discriminator too weak"
DIVERGED = "diverged"
HEALTHY = "healthy"
EARLY = "too early to tell"

RECENT = 5
"""Lines of metrics that a verdict has to hold for, each of them: single ones swing."""
GRIDS = 2
"""Sample grids that a verdict on samples has to hold for."""
SKIPPED = 0.5
"""Share of a network's steps without a finite gradient from which it learns nothing any more; under fp16 a few are usual."""
SKIPPING = {"skipped/D": "the critic's", "skipped/G": "the generator's"}
"""Their keys, in words."""
BEYOND = {
    "loss/D": "loss/D is",
    "loss/G": "loss/G is",
    "logits/real": "logits of real images are",
    "logits/fake": "logits of fakes are",
    "logits/generated": "logits of generated images are",
}
"""Means that are not there once the networks make no numbers, in words."""
LOGIT = 1_000.0
"""Size of mean logits that no working critic reaches: with cross-entropy the gradient is gone beyond 100. Wasserstein's
have no scale."""
GROWING = 1.2
"""Factor by which samples are still on the way from grey to varied, as all are at first: from one grid to the next; over the
grids of `PATIENCE` where they never varied and the critic is not fooled."""
PATIENCE = 8
"""Grids after which samples that never varied have collapsed, whatever the critic says; before, they may be still grey."""
OVERFIT = 0.5
"""Overfit gap from which held-out images are scored more like fakes than like training images."""
TOLD = 0.75
"""Accuracy on training images, the median of recent lines as single ones swing, under which a gap is the noise of a critic
that tells little apart anyway."""
SURE = 0.05
"""Loss of the critic as a share of a guessing one's under which the generator is left with next to no gradient."""
FOOLED = 1.5
"""The same, from which the critic is further from the truth than a guess: it does not keep up with the generator."""
GUESSING = {
    "non_saturating": 2 * math.log(2),
    "minimax": 2 * math.log(2),
    "hinge": 2.0,
    "least_squares": 0.25,
    "relativistic": math.log(2),
}
"""Loss of the critic that gives every image the same logit, the best one; Wasserstein's has no scale."""


@dataclass(frozen=True)
class Verdict:
    name: str
    """One of the seven above."""
    meaning: str
    """In plain words."""
    evidence: tuple[str, ...]
    remedy: str = ""
    """The settings to try; empty where nothing is wrong."""


@dataclass(frozen=True)
class Record:
    """What a run has written so far."""

    config: Config
    metrics: Lines
    samples: Lines

    @property
    def recent(self) -> Lines:
        return self.metrics[-RECENT:]


def read_record(run_dir: Path) -> Record:
    """Raises `UserError`."""
    config = read_config(run_dir / "config.yaml")
    grids = read_lines(run_dir / "samples.jsonl")
    varied = [grid for grid in grids if min(grid["samples"], grid["compared"]) > 1]  # of one image there is no diversity
    return Record(config, read_lines(run_dir / "metrics.jsonl"), varied)


def diagnose(record: Record) -> list[Verdict]:
    """All that is wrong, or that nothing is."""
    if found := diverged(record):
        return [found]
    if len(record.metrics) < RECENT:
        return [too_early(record)]
    checks = (overfitting, too_strong, collapse, too_weak)
    wrong = [verdict for check in checks if (verdict := check(record))]
    if wrong:
        return wrong
    return [healthy(record) or too_early(record)]


def diverged(record: Record) -> Verdict | None:
    """Told by the last line alone: there is no way back. A few skipped steps are one, and their means are not there."""
    if not record.metrics:
        return None
    last, config = record.metrics[-1], record.config
    evidence = [
        f"gradients were not finite in {last[name]:.0%} of {whose} steps"
        for name, whose in SKIPPING.items()
        if last.get(name, 0.0) >= SKIPPED  # which older lines have not
    ]
    if (row := last.get("skipped_in_a_row", 0)) >= config.train.nonfinite_limit:
        evidence.append(f"gradients were not finite in {row} steps in a row")
    if evidence or not last["skipped_steps"]:  # else means of a step that was skipped: the training has gone on
        evidence += [f"{words} not finite" for name, words in BEYOND.items() if last.get(name, 0.0) is None]
    real, fake = last["logits/real"], last["logits/fake"]
    if guessed(record) and real is not None and fake is not None and abs(real - fake) > LOGIT:
        evidence.append(f"mean logits are {figure(real)} for real images and {figure(fake)} for fakes")
    if not evidence:
        return None
    clip = "" if config.optim.clip else ", with --optim.clip 1"
    return Verdict(
        DIVERGED,
        "The networks have left the range in which they can learn, and will not come back.",
        tuple(evidence),
        f"another run with lower learning rates, {rates(config, 0.25, 0.25)}{clip}; or with a longer optim.warmup",
    )


def overfitting(record: Record) -> Verdict | None:
    """Needs held-out images, and a critic that does tell training images from fakes."""
    lines = record.recent
    if any(line.get("overfit_gap") is None for line in lines):
        return None
    if low(lines, "overfit_gap") < OVERFIT or median(finite(lines, "accuracy/train")) < TOLD:
        return None
    last = lines[-1]
    return Verdict(
        OVERFITTING,
        "The discriminator knows the training images by heart: it takes real images that it has not seen for fakes.",
        (
            f"mean logits: training images {figure(last['logits/train'])}, held-out real images "
            f"{figure(last['logits/held_out'])}, fakes {figure(last['logits/generated'])}",
            f"accuracy: {last['accuracy/train']:.0%} of training images, {last['accuracy/held_out']:.0%} of held-out ones",
            f"overfit gap {spread(lines, 'overfit_gap')} in the last {len(lines)} lines (0 is none, 1 is all)",
        ),
        "; ".join(filter(None, (more_augmentation(record.config, last), "more training images", smaller(record.config)))),
    )


def too_strong(record: Record) -> Verdict | None:
    """A critic that is sure of every image, training or held out; an overfitting one is another case."""
    lines = record.recent
    if not losses_between(record, 0.0, SURE) or overfitting(record):
        return None
    evidence = [
        f"loss/D is {spread(lines, 'loss/D')} in the last {len(lines)} lines; a guess costs {guess(record):.3g}",
        accuracy(record),
    ]
    told = finite(lines, "accuracy/held_out")
    overfits = bool(told) and min(told) < TOLD
    if not told:
        evidence.append("whether it knows the training images by heart is not to be told without held-out images")
    elif overfits:
        right = f"{min(told):.0%} to {max(told):.0%} of held-out real images"
        evidence.append(f"overfit gap {spread(lines, 'overfit_gap')}, accuracy {right}: it may overfit besides")
    else:
        evidence.append(f"so it is of held-out real images, {told[-1]:.0%}: it is no overfitting")
    if never_varied(record):
        evidence.append(f"the generator has not begun to learn: {alike(record.samples[-1])}")
    config = record.config
    further = more_augmentation(config, lines[-1]) if overfits else ""
    remedies = further, more_penalty(config), rates(config, 1.0, 0.25), smaller(config)
    return Verdict(
        TOO_STRONG,
        "The discriminator tells every fake, so that the generator does not hear which are better.",
        tuple(evidence),
        "; ".join(filter(None, remedies)),
    )


def too_weak(record: Record) -> Verdict | None:
    """A critic that is further off than a guess; the samples of a generator that fools it may be anything."""
    if not losses_between(record, FOOLED, math.inf) or collapse(record):
        return None
    lines = record.recent
    return Verdict(
        TOO_WEAK,
        "The generator fools a discriminator that does not keep up, so that what it makes need not look like the images.",
        (
            f"loss/D is {spread(lines, 'loss/D')} in the last {len(lines)} lines; a guess costs {guess(record):.3g}",
            accuracy(record),
        ),
        keep_up(record.config),
    )


def collapse(record: Record) -> Verdict | None:
    """Samples that are alike though they were varied, or though the generator has its way; not those of a slow start."""
    grids = record.samples[-GRIDS:]
    if len(grids) < GRIDS or not all(is_alike(grid) for grid in grids):
        return None
    last, fooled = grids[-1], losses_between(record, FOOLED, math.inf)
    patient = len(record.samples) >= PATIENCE and not losses_between(record, 0.0, SURE)
    slow = never_varied(record) and not fooled
    earlier = record.samples[-PATIENCE:][0] if slow else grids[0]
    growing = all(share(last, name) > GROWING * share(earlier, name) for name in too_low(last))
    if growing or (slow and not patient):
        return None
    evidence = [f"at {grid['images_seen']} images {alike(grid)}" for grid in grids]
    if not never_varied(record):
        best = next(grid for grid in reversed(record.samples) if not is_alike(grid))
        evidence.append(f"at {best['images_seen']} images they were varied: {share(best, 'diversity'):.0%}")
    copies = len(set(last["nearest_images"]))
    evidence.append(f"the {last['samples']} samples are nearest to {copies} of {last['compared']} training images")
    cause = keep_up(record.config) if fooled else f"{more_penalty(record.config)}; {rates(record.config, 0.5, 0.5)}"
    if only_in_class(last):
        cause = f"{variety_in_class(record.config)}; {cause}"
    return Verdict(
        COLLAPSE,
        f"Yes, mode collapse: other latents give (nearly) the same pictures{' of each class' * only_in_class(last)}.",
        tuple(evidence),
        f"{cause}; from a checkpoint before it where one is kept, --init_from RUN/checkpoints/IMAGES",
    )


def healthy(record: Record) -> Verdict | None:
    """Nothing is wrong and the samples are varied and look like the images: nearer to one than two of these to each other."""
    last, lines = record.metrics[-1], record.recent
    if len(record.samples) < GRIDS:
        return None
    grid = record.samples[-1]
    if is_alike(grid) or grid["nearest_train"] > grid["diversity_real"]:
        return None
    evidence = [
        f"loss/D {spread(lines, 'loss/D')} in the last {len(lines)} lines",
        accuracy(record),
        alike(grid),
        f"nearest training image {grid['nearest_train']:.3g} grey levels away; of training images the nearest other one "
        f"{grid['nearest_train_real']:.3g}",
    ]
    if last.get("overfit_gap") is not None:
        evidence.append(f"overfit gap {spread(lines, 'overfit_gap')}")
    return Verdict(HEALTHY, "Nothing speaks for collapse, overfitting or divergence.", tuple(evidence))


def too_early(record: Record) -> Verdict:
    """Also of a run that has gone on for long without learning: nothing else is known of it."""
    if len(record.metrics) < RECENT or len(record.samples) < GRIDS:
        meaning = f"A verdict needs {RECENT} lines of metrics (log.every) and {GRIDS} sample grids (log.samples)."
        return Verdict(EARLY, meaning, (f"there are {len(record.metrics)} and {len(record.samples)}",))
    grid = record.samples[-1]
    evidence = (
        alike(grid),
        f"nearest training image {grid['nearest_train']:.3g} grey levels away; two training images are "
        f"{grid['diversity_real']:.3g} from each other",
    )
    return Verdict(EARLY, "Nothing has failed, but the samples do not look like the images yet.", evidence)


# --- figures


def losses_between(record: Record, low_share: float, high_share: float) -> bool:
    """Whether the critic's loss lies there in all recent lines, as a share of a guess's; never where a guess has none."""
    losses = finite(record.recent, "loss/D") if guessed(record) else []
    return len(losses) == len(record.recent) and all(low_share <= loss / guess(record) <= high_share for loss in losses)


def guessed(record: Record) -> bool:
    """Whether a guess has a loss of its own, and so logits a scale."""
    return not record.config.loss.own and record.config.loss.name in GUESSING


def guess(record: Record) -> float:
    return GUESSING[record.config.loss.name]


def never_varied(record: Record) -> bool:
    return bool(record.samples) and all(is_alike(grid) for grid in record.samples)


def accuracy(record: Record) -> str:
    """With the sign statistic that adaptive augmentation goes by (Karras et al. 2020, eq. 1), of runs that have it."""
    line = record.metrics[-1]
    if record.config.loss.name in DIFFERENCES:
        return f"a real image has the higher logit in {line['accuracy/real']:.0%} of pairs"
    text = f"accuracy: {line['accuracy/real']:.0%} of real images, {line['accuracy/fake']:.0%} of fakes"
    return f"{text}; mean sign of real logits {line['sign/real']:.2f}" if "sign/real" in line else text


def finite(lines: Lines, name: str) -> list[float]:
    """Those there are: a step that was skipped leaves a line without a mean, and held-out images may be new to a run."""
    return [float(line[name]) for line in lines if line.get(name) is not None]


def low(lines: Lines, name: str) -> float:
    return min(finite(lines, name))


def spread(lines: Lines, name: str) -> str:
    values = finite(lines, name)
    return f"{min(values):.3g} to {max(values):.3g}" if values else "not finite"


def figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
