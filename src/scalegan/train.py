"""`accelerate launch -m scalegan.train --config configs/kiwi.yaml`, and the same on one process by `scalegan train`."""

from __future__ import annotations

from scalegan import early

if __name__ == "__main__":
    early.remember()  # even before the other imports, which take seconds on a cold file system

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalegan import launcher, no_effect, run, settings
from scalegan.config import Config
from scalegan.data.held_out import held_out_of, read_held_out
from scalegan.data.index import Index, read_index
from scalegan.errors import UserError, on_this_machine
from scalegan.evaluation.names import (
    CELL_MINIMUM,
    FIGURES,
    METRICS,
    WIDTHS,
    check_class_count,
    check_counts,
    check_probabilities,
    check_real,
    compared,
)
from scalegan.watchdog import Watchdog

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed import ProcessGroup

OF_MACHINES = ("run", "data.", "evaluation.weights", "evaluation.lpips_weights")
"""Settings that may be others on each machine: where its files lie, and how it reads them."""


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; returns the exit code. Raises `UserError`."""
    request = settings.parse(argv)
    if request.debug or request.dry_run:
        early.forget()
    if request.debug:
        from scalegan.debug import debug

        return debug(request.config)
    if request.dry_run:
        from scalegan.dry_run import dry_run

        return dry_run(request.config)
    train(request.config)
    return 0


def train(config: Config) -> bool:
    """One run, new or continued, on every process of the launcher; whether its end was reached. Raises `UserError`."""
    config.check(launcher.world_size())
    with closing(Watchdog(60 * config.train.hang_minutes, Path(config.run), launcher.rank())) as watchdog:
        watchdog.begin(0)  # also where the others never come, or a file system does not answer
        return watched(config, watchdog)


def watched(config: Config, watchdog: Watchdog) -> bool:
    """`train`, which `watchdog` ends where it stands still."""
    with on_this_machine():
        run.refuse_file(Path(config.run))
        index = read_index(config.data.path, compare=config.data.fails)
        check_data(config, index)
        if recorded := run.recorded_precision(Path(config.run)):
            settled: Any = recorded if config.train.precision == "auto" else config.train.precision
            run.check(Path(config.run), replace(config, train=replace(config.train, precision=settled)), index.sha256)
        run.refuse_second_writer(Path(config.run))

    # All that needs no torch has been checked.
    import torch

    from scalegan import own
    from scalegan.distributed import as_one, control_group, from_all, from_main, in_company, make_accelerator, settle_precision
    from scalegan.models import projected
    from scalegan.trainer import Trainer

    config = settle_precision(config, recorded)
    with in_company():
        accelerator = make_accelerator(config.train)
        group = control_group()
        with as_one(group):
            own.check(config)
            if config.model.critic == "projected":
                projected.pretrained()  # one machine may lack them: told here, where the others still listen
        # What has to be fetched: by one process, by one of each machine where that has not its folder, then seen by all.
        for fetches in (accelerator.is_main_process, accelerator.is_local_main_process, True):
            with as_one(group):
                if fetches:
                    find_weights(config)
        if len(found := set(from_all(config.train.precision, group))) > 1:
            raise UserError(
                f"train.precision auto is {' and '.join(sorted(found))} on these machines: say which, --train.precision fp32"
            )
        refuse_unlike(config, index, group)
        claimed = claim(config, index, accelerator)
        from_main(claimed if isinstance(claimed, UserError) else None, group)
        try:
            reached = Trainer(config, accelerator, index, group, watchdog).train()
        except (UserError, torch.OutOfMemoryError):
            if isinstance(claimed, run.Lock):
                run.release(Path(config.run))
            raise
        finally:
            if isinstance(claimed, run.Lock):
                claimed.close()
    accelerator.end_training()
    return reached


def refuse_unlike(config: Config, index: Index, group: ProcessGroup | None) -> None:
    """Raises `UserError` where a process would train by other settings or on other images, which nothing exchanged shows."""
    from scalegan.distributed import as_one, from_main

    alike = {name: value for name, value in run.flatten(config.to_dict()).items() if not name.startswith(OF_MACHINES)}
    alike |= run.flatten({"data": config.identity()["data"] | {"sha256": index.sha256}})
    first = from_main(None if launcher.rank() else alike, group)
    with as_one(group):
        if unlike := run.differences(first, alike):
            raise UserError(
                f"it has other settings or images than process 0 ({'; '.join(unlike)}): give every machine the same command "
                "and the same shards"
            )


def find_weights(config: Config) -> None:
    """Those of the evaluation: what is missing on one machine is told now, not hours later. Raises `UserError`."""
    from scalegan.evaluation import features
    from scalegan.evaluation.weights import lpips_path

    features.find_weights(config.evaluation)
    if config.evaluation.wants_lpips:
        lpips_path(config.evaluation.lpips, config.evaluation.lpips_weights)


def claim(config: Config, index: Index, accelerator: Accelerator) -> run.Lock | UserError | None:
    """On process 0: the lock of the run folder, or why it cannot be had, for all processes to hear."""
    if not accelerator.is_main_process:
        return None
    from scalegan import start

    folder = Path(config.run)
    held = None
    try:
        origin = start.find(config, index)
        held = run.Lock(folder)
        run.claim(folder, config, index.sha256, origin)
    except UserError as error:
        if held is not None:
            held.close()
        return error
    return held


def check_data(config: Config, index: Index) -> None:
    path = config.data.path
    if not run.begun(Path(config.run)):  # a run that has begun goes on with what it was told
        no_effect.check(config, index)
    if index.samples < config.train.batch:
        processes = launcher.world_size()
        parts = processes * config.train.accumulate
        batch = index.samples // parts * parts
        tried = f"try {config.options_of_batch(batch, processes)}" if batch else "use more data"
        raise UserError(f"{path} has {index.samples} images, fewer than one batch: {tried}")
    if config.model.conditional and not index.labelled:
        raise UserError(f"model.conditional is true but {path} has no labels: write shards with classes, or set it false")
    if config.augment.rotate90 and index.height != index.width:
        raise UserError(
            f"augment.rotate90 turns by 90 degrees, and the {index.height}x{index.width} images of {path} are not square: "
            "set --augment.rotate90 false"
        )
    check_evaluation(config, index)


def check_evaluation(config: Config, index: Index) -> None:
    """What evaluations lack is told at the start, and not at the first of them."""
    path, real, wanted = config.data.path, config.evaluation.real, config.evaluation.wanted
    best, side = config.evaluation.best, FIGURES[config.evaluation.best].side
    if min(index.height, index.width) < side:
        raise UserError(
            f"evaluation.best {best} needs images of {side} pixels a side, and those of {path} have "
            f"{index.height}x{index.width}: choose another, such as fid"
        )
    check_probabilities(wanted, config.evaluation.extractor)
    check_counts(wanted, config.evaluation.samples, compared(real, index.samples), WIDTHS.get(config.evaluation.extractor))
    check_real(real, index.samples, path)
    by_class = [name for name in wanted if METRICS[name].classes]
    if by_class and not index.labelled:
        raise UserError(
            f"metric {by_class[0]} needs images with labels and {path} has none: write shards with classes, or take it out of "
            "evaluation.metrics"
        )
    if by_class and not config.model.conditional:
        raise UserError(
            f"metric {by_class[0]} needs a generator that is told the class: set --model.conditional true, or take it out of "
            "evaluation.metrics"
        )
    check_class_count(wanted, len(index.classes))
    rare = {name: count for name, count in zip(index.classes, index.class_counts, strict=True) if count < 2}
    if by_class and rare:
        name = next(iter(rare))
        raise UserError(
            f"metric {by_class[0]} needs 2 real images of each class, and {path} has {rare[name]} of {name}: write shards "
            f"without that class, or take {by_class[0]} out of evaluation.metrics"
        )
    held_out = held_out_of(config.data.held_out, index)
    kept_out = read_held_out(held_out, index, compare=config.data.fails).samples if held_out else 0
    if "memorisation" in wanted and kept_out < CELL_MINIMUM:
        raise UserError(
            f"metric memorisation needs {CELL_MINIMUM} images that were never trained on, and there are {kept_out}: name "
            "shards of more, --data.held_out FOLDER, or take it out of evaluation.metrics"
        )


if __name__ == "__main__":
    from scalegan import cli

    launcher.leave(cli.main(["train", *sys.argv[1:]]))
