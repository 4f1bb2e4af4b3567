"""What a run leaves behind as it goes: status lines, metrics, sample grids, evaluation records, plots."""

from __future__ import annotations

import os
import time
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from scalegan import figures, run, sampling, schedules
from scalegan.config import Config
from scalegan.data.index import Index, is_remote
from scalegan.data.loader import Reader
from scalegan.data.order import make_order, samples_at
from scalegan.distributed import has_bf16
from scalegan.errors import GivenUp, UserError, full_gpu
from scalegan.files import no_room
from scalegan.likeness import Likeness
from scalegan.signals import StopNotice
from scalegan.start import described
from scalegan.status import Status
from scalegan.tracking import Tracker

REQUEUE = "requeue"
"""File in the run folder that asks the batch script to queue the job again: images seen, and `ATTEMPT` where there is one."""
ATTEMPT = "SCALEGAN_ATTEMPT"
"""Variable by which the batch script knows its own run of its own job: others may have been, or be, at the same folder."""

MOST_COMPARED = 50_000
"""Training images that samples are compared with at most."""


class Fetched:
    """What each process has fetched of remote shards, as a whole and in this epoch.

    An epoch begins with the last line of the log in the one before: where epochs are shorter than `log.every`, with the last
    line there was. After a resume it begins there.
    """

    def __init__(self, length: int, images_seen: int) -> None:
        self.length = length
        """Images of an epoch."""
        self.epoch = images_seen // length
        self.before: list[float] = []
        self.last: list[float] = []

    def line(self, images_seen: int, fetched: list[float]) -> dict[str, list[float]]:
        """`fetched` in MB by process, since the start."""
        epoch = (images_seen - 1) // self.length  # that of the last image
        if epoch > self.epoch:
            self.epoch, self.before = epoch, self.last
        self.last = fetched
        before = self.before or [0.0] * len(fetched)
        return {"fetched_mb": fetched, "fetched_mb_epoch": [now - then for now, then in zip(fetched, before, strict=True)]}


class Outputs:
    """Only process 0 writes; what needs every process is called on every process."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        index: Index,
        images_seen: int,
        wandb_id: str | None,
        group: dist.ProcessGroup | None,
        notice: StopNotice,
    ) -> None:
        self.config, self.accelerator, self.index, self.group = config, accelerator, index, group
        self.notice = notice
        self.run_dir = Path(config.run)
        self.main = accelerator.is_main_process
        self.waited = self.stalled = 0.0
        """Seconds since the last line of metrics: for data, and in saving."""
        self.began = self.read_at = time.perf_counter()
        self.read_images = images_seen
        self.fetched = Fetched(make_order(config.data, index, config.train.seed).epoch, images_seen)
        if self.main:
            self.status = Status(config.train.images, self.run_dir, images_seen)
            self.tracker = Tracker(self.run_dir, config, images_seen, wandb_id, say=self.status.say)
            self.cut_grids(images_seen)

    @property
    def wandb_id(self) -> str | None:
        return self.tracker.wandb_id if self.main else None

    def say(self, text: str) -> None:
        if self.main:
            self.status.say(text)

    def start(self, images_seen: int) -> None:
        if not self.main:
            return
        (self.run_dir / REQUEUE).unlink(missing_ok=True)
        if images_seen < self.config.train.images:
            self.say(self.opening(images_seen))
        if images_seen:
            self.say(f"going on at {images_seen} images of {self.config.train.images}")
        elif len(self.index.classes) > 1 and (why := without_classes(self.config)):
            self.say(f"the {len(self.index.classes)} classes are not used: {why}")
        if not images_seen and (slow := slow_augmentation(self.config)):
            self.say(slow)
        if not images_seen and (origin := run.started_from(self.run_dir)):
            self.say(described(origin, self.index))
        if self.config.train.precision == "bf16" and not has_bf16(self.accelerator.device.type):
            self.say("bfloat16 is emulated on this device, and slow: --train.precision fp32 --override_resume will be faster")
        # A run that begins anew may have left one of other images (see `run.release`).
        if not images_seen or not (self.run_dir / "samples" / "real.png").exists():
            self.real_grid()
        if is_remote(self.index.root):
            _ = self.likeness  # now, while the shards that it looks into are those that are fetched first
        self.began = self.read_at = time.perf_counter()

    def opening(self, images_seen: int) -> str:
        """What is trained on what, and how long the first figures let wait."""
        index, every, processes = self.index, self.config.log.every, self.accelerator.num_processes
        first = min((images_seen // every + 1) * every, self.config.train.images)
        several = f"{processes} x " if processes > 1 else ""
        where = f"{self.config.train.precision} on {several}{self.accelerator.device.type}"
        images = f"{index.samples} images of {index.height}x{index.width} in {index.root}"
        return f"{self.run_dir}: {images}, {where}, first figures at {first} images"

    def cut_grids(self, images_seen: int) -> None:
        """Delete those after `images_seen`, as the lines about them are cut: the run makes them again, if it gets there."""
        for path in (self.run_dir / "samples").glob("*.png"):
            if path.stem.isdigit() and path == self.grid_path(int(path.stem)) and int(path.stem) > images_seen:
                path.unlink()

    def grid_path(self, images_seen: int) -> Path:
        return self.run_dir / "samples" / f"{images_seen:09d}.png"

    def real_grid(self) -> None:
        """As many real images as a sample grid has."""
        with closing(Reader(self.index, self.config.data, torch.device("cpu"))) as reader:
            images = reader.read(self.first_images(self.config.log.grid)).images
        figures.save_png(self.run_dir / "samples" / "real.png", images.numpy())

    def first_images(self, most: int) -> NDArray[np.int64]:
        """The numbers of the first images of the first stream, whose shards process 0 reads anyway."""
        order, batch = make_order(self.config.data, self.index, self.config.train.seed), self.config.train.batch
        count, share = min(most, order.segment), batch // order.streams
        steps = np.arange(-(-count // share)) * batch
        return samples_at(order, steps[:, None], np.arange(share), batch).ravel()[:count]

    @cached_property
    def likeness(self) -> Likeness:
        """On process 0: all training images, if they are not too many; in the `blocks` order those of one window, which are
        near, so that the figures are the same wherever the shards lie."""
        most = self.config.data.window if self.config.data.order == "blocks" else MOST_COMPARED
        with closing(Reader(self.index, self.config.data, torch.device("cpu"))) as reader:
            return Likeness(self.first_images(most), reader.read, len(self.index.classes))

    def advance(self, images_seen: int) -> None:
        if self.main:
            self.status.advance(images_seen)

    def waiting(self) -> list[str]:
        """Files with lines that the disk has no room for; process 0."""
        return self.tracker.waiting()

    def losses(self, steps: list[tuple[int, float, float]]) -> None:
        if self.main:
            self.tracker.losses(steps)

    def log(self, images_seen: int, metrics: dict[str, float], memory: float, fetched: list[float] | None) -> None:
        """`memory` in MB, of this process; `fetched` in MB, by process since the start, of remote shards."""
        now = time.perf_counter()
        passed = max(now - self.read_at, 1e-9)
        timing: dict[str, Any] = {
            "seconds": now - self.began,
            "images_per_s": (images_seen - self.read_images) / passed,
            "data_wait_share": self.waited / passed,
            "save_share": self.stalled / passed,
            "memory_mb": memory,
        }
        if fetched is not None:
            timing |= self.fetched.line(images_seen, fetched)
        self.read_at, self.read_images = now, images_seen
        self.waited = self.stalled = 0.0
        if self.main:
            self.tracker.log(images_seen, metrics)
            self.tracker.timing(images_seen, timing)
            self.status.tick(images_seen, metrics, timing)

    def samples(self, ema: nn.Module, images_seen: int) -> None:
        """A grid from fixed latents, a column a class where the generator is told the class; and how alike its images are."""
        if not self.main:
            return
        start = time.perf_counter()
        count, classes = self.config.log.grid, len(self.index.classes) if self.config.model.conditional else 0
        labels = sampling.grid_labels(count, classes)
        try:
            images = self.draw(ema, 0, count, labels)
        except (UserError, torch.OutOfMemoryError) as error:  # of this process alone, while the others go on
            why = error if isinstance(error, UserError) else full_gpu(error)
            self.say(f"samples at {images_seen} images were NOT made: {why}")
            return
        path = self.grid_path(images_seen)
        try:
            figures.save_png(path, images.numpy(), classes if 1 < classes <= 20 else None)
            self.tracker.images(images_seen, path)
        except OSError as error:
            if not no_room(error):
                raise
            self.say(f"samples at {images_seen} images were NOT written: {error.strerror}")
        self.tracker.likeness(images_seen, self.likeness.record(images, labels))
        self.not_training_since(start)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """What labels are drawn by, where the generator is told the class."""
        return self.index.class_counts if self.config.model.conditional else ()

    def draw(self, ema: nn.Module, first: int, count: int, labels: Tensor | None = None) -> Tensor:
        """Images of the run's own seed: uint8 [count, C, H, W]."""
        model, seed = self.config.model, self.config.train.seed
        return sampling.images_of(ema, model.z_dim, self.class_counts, seed, first, count, labels)

    def drawn_labels(self, first: int, count: int) -> NDArray[np.int64]:
        """The classes of those images, [count]."""
        return sampling.drawn_labels(self.config.train.seed, first, count, self.index.class_counts)

    def evaluate(self, ema: nn.Module, images_seen: int) -> dict[str, Any]:
        from scalegan.evaluation.evaluator import evaluate
        from scalegan.evaluation.path_length import LatentPaths

        start = time.perf_counter()
        record = evaluate(
            sampling.Passes(lambda first, count: self.draw(ema, first, count)),
            self.index,
            self.config.evaluation,
            seed=self.config.train.seed,
            images_seen=images_seen,
            ema=True,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            device=self.accelerator.device,
            cache=self.run_dir / "cache",
            data=self.config.data,
            labels=self.drawn_labels if self.config.model.conditional else None,
            paths=LatentPaths(ema, self.config.model.z_dim, self.class_counts, self.config.train.seed),
            pictures=self.run_dir / "evaluations",
            progress=self.looking,
        )
        if self.main:
            self.tracker.record(images_seen, record)
            if "closest_picture" in record:
                self.tracker.images(images_seen, self.run_dir / "evaluations" / record["closest_picture"], "closest")
            self.status.record(images_seen, record, self.config.evaluation.judged_by)
        self.not_training_since(start)
        return record

    def looking(self, what: str, done: int, count: int) -> None:
        """How far an evaluation is. It is given up for a notice to stop, as it may take longer than there is time until the
        end: of processes that are told alone, the others finish the pass that they are at."""
        if self.notice.latched:
            raise GivenUp("an evaluation was given up: the same command makes it")
        if self.main:
            self.status.looking(what, done, count)

    def not_training_since(self, start: float) -> None:
        """Time since `start` counts neither as training nor as waiting."""
        self.read_at += time.perf_counter() - start

    def stopped(self, images_seen: int, saved: bool) -> None:
        """Raises `UserError` where images were lost: such an end is no success, on which other jobs may wait."""
        if not saved:
            raise UserError(
                f"stopped at {images_seen} images on request, NOT saved: the same command goes on from the checkpoint before"
            )
        if self.main:
            (self.run_dir / REQUEUE).write_text(f"{images_seen} {os.environ.get(ATTEMPT, '')}".rstrip() + "\n")
        self.say(f"stopped at {images_seen} images on request, checkpoint saved: run the same command to go on")

    def finished(self, images_seen: int) -> None:
        if not self.main:
            return
        from scalegan.plots import plot_run

        made = plot_run(self.run_dir)
        self.say(f"done: {images_seen} images; see {self.run_dir / 'samples'} and {made[0].parent if made else self.run_dir}")

    def close(self) -> None:
        if self.main:
            self.tracker.close()
            self.status.close()


def without_classes(config: Config) -> str:
    """Why no step of the run tells classes apart; empty where one does."""
    model, train = config.model, config.train
    if not model.conditional:
        return "model.conditional is false"
    if schedules.class_strength(model, (train.images - 1) // train.batch * train.batch) > 0:  # in the last step
        return ""
    return f"model.class_start is {model.class_start}, and the run ends at {train.images} images"


def slow_augmentation(config: Config) -> str:
    """What to do where adaptive augmentation has no time to set in (Karras et al. 2020b begin at p = 0); empty elsewhere."""
    augment, images = config.augment, config.train.images
    highest = images / augment.speed
    if not augment.target or highest >= 0.2:
        return ""
    return (
        f"augment.p can rise to {highest:.2g} at most in {images} images, as augment.speed is {augment.speed} images: give "
        f"--augment.speed {max(1, images // 4)}, or a fixed --augment.p"
    )
