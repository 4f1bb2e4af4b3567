"""The training loop: resume; while there are images to see: D step, G step, average, advance, what is due; a last pass."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from scalegan import best, checkpoint, run, schedules, start, state
from scalegan.background import Saver
from scalegan.config import Config
from scalegan.data.index import Index, is_remote
from scalegan.data.loader import Batch, batches
from scalegan.distributed import as_one, from_all, from_main, together
from scalegan.errors import GivenUp, UserError
from scalegan.outputs import Outputs
from scalegan.probe import make_probe, steepness
from scalegan.signals import StopNotice
from scalegan.statistics import Statistics
from scalegan.steps import Game
from scalegan.tracking import cut_back
from scalegan.watchdog import Watchdog


@dataclass
class Clock:
    """Images seen: the one clock of a run."""

    images_seen: int
    batch: int

    def advance(self) -> None:
        self.images_seen += self.batch

    def crossed(self, every: int) -> bool:
        """Whether the last step went over a multiple of `every` images; never, for 0."""
        return every > 0 and self.images_seen // every > (self.images_seen - self.batch) // every


class Trainer:
    """One run on one process. `group` is the process group of the CPU for flags; None with one process."""

    def __init__(
        self, config: Config, accelerator: Accelerator, index: Index, group: dist.ProcessGroup | None, watchdog: Watchdog
    ) -> None:
        self.config, self.accelerator, self.index, self.group, self.watchdog = config, accelerator, index, group, watchdog
        self.notice = StopNotice(group)  # from now on a notice stops the run in good order, however long the start takes
        facts = start.facts_of(index)
        self.game = Game(config, accelerator, facts)
        log, limit = config.log, config.train.nonfinite_limit
        self.statistics = Statistics(accelerator.device, every_step=log.step_losses, limit=limit)
        self.clock = Clock(0, config.train.batch)
        self.run_dir = Path(config.run)
        self.saver = Saver(self.run_dir, log.keep)
        self.intervals = {
            "log": log.every,
            "samples": log.samples,
            "evaluation": config.evaluation.every,
            "snapshot": log.snapshots,
            "checkpoint": log.checkpoint,
        }
        self.best: best.Best = {}
        self.done: dict[str, int] = {}  # what was made last at how many images
        self.reals: list[Batch] = []  # of the last step: none yet where a run is shortened to what it has seen
        self.left_out: list[int] = []  # images that could not be read so far
        self.game.prime()
        wandb_id = self.resume()
        with as_one(group):
            self.probe = make_probe(index, self.game)
        if accelerator.is_main_process:
            checkpoint.cut_snapshots(self.run_dir, self.clock.images_seen)
            if self.done.get("evaluation") != self.clock.images_seen:  # one of this very point is to come, again perhaps
                cut_back(self.run_dir / "evaluations.jsonl", self.clock.images_seen - 1)
        self.outputs = Outputs(config, accelerator, index, self.clock.images_seen, wandb_id, self.group, self.notice)

    def train(self) -> bool:
        """Run to the end, or to a notice to stop; returns whether the end was reached."""
        config, clock = self.config, self.clock
        with ExitStack() as ending:  # whatever ends it: last entered, first closed
            for close in (self.outputs.close, self.notice.close, lambda: self.tell(self.saver.wait()), self.watchdog.close):
                ending.callback(close)
            self.watchdog.begin(clock.images_seen)
            place = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
            with as_one(self.group):
                self.loader = batches(self.index, config, clock.images_seen, *place)
                ending.callback(self.loader.close)
                self.loader.tolerance.restore(self.left_out)
            self.share_left_out()  # what is kept in memory has been read whole, on each machine its own shards
            self.outputs.start(clock.images_seen)
            try:
                if 0 < clock.images_seen < config.train.images:
                    with self.watchdog.paused():
                        self.run_due(self.due())  # what was given up at this very point
                stopped = self.take_steps()
                with self.watchdog.paused():
                    self.finish(stopped)
            except GivenUp:
                stopped = True
                with self.watchdog.paused():
                    self.outputs.stopped(clock.images_seen, saved=self.saved())
        return not stopped

    def take_steps(self) -> bool:
        """Step by step to the end, or to a notice to stop; returns whether it was that."""
        config, clock = self.config, self.clock
        while clock.images_seen < config.train.images:
            if self.notice.asked():
                return True
            self.reals = self.fetch()
            critic_values = self.game.discriminator_step(self.reals, clock.images_seen)
            generator_values = self.game.generator_step(self.reals, clock.images_seen)
            clock.advance()
            self.outputs.advance(clock.images_seen)
            self.game.average(clock.images_seen)
            self.statistics.add(critic_values, generator_values, clock.images_seen, self.game.nonfinite)
            self.watchdog.step(clock.images_seen)
            if clock.images_seen < config.train.images:  # else the last pass makes everything
                with self.watchdog.paused():
                    self.run_due(self.due())
        return False

    def fetch(self) -> list[Batch]:
        """This step's real images on this process, one batch a round."""
        start = time.perf_counter()
        try:
            reals = [next(self.loader) for _ in range(self.config.train.accumulate)]
        except UserError as error:
            if not self.accelerator.is_main_process:  # process 0 does not know: its images were all right
                print(f"scalegan: error: process {self.accelerator.process_index}: {error}", file=sys.stderr, flush=True)
            raise
        self.outputs.waited += time.perf_counter() - start
        return reals

    def due(self) -> set[str]:
        """What the last step went over an interval of."""
        return {name for name, every in self.intervals.items() if self.clock.crossed(every)}

    def run_due(self, due: set[str]) -> None:
        """Make what is `due`, of the names of the intervals."""
        improved = False
        self.tell(self.saver.problem())
        if "log" in due and self.statistics.counts.any():
            self.log()
        if "samples" in due:
            self.once("samples", lambda: self.outputs.samples(self.game.ema, self.clock.images_seen))
        if "evaluation" in due:
            try:
                improved = self.once("evaluation", self.evaluate) or False
            except UserError:  # also `GivenUp`: no step is lost, and the run goes on with this evaluation
                self.save(pruned=False)  # the networks may be what is wrong
                raise
        if self.game.powers and "snapshot" in due:
            self.once("snapshot", self.snapshot)
        if improved or "checkpoint" in due:
            self.once("checkpoint", self.save)
        if due:
            together(self.group)  # process 0 alone draws and writes: no other is to wait for it in a step, under its watchdog

    def once(self, what: str, make: Callable[[], Any]) -> Any:
        """Make something unless it was made at this very point of the run."""
        before = self.done
        if before.get(what) == self.clock.images_seen:
            return None
        self.done = before | {what: self.clock.images_seen}  # before it is made, as a checkpoint holds this too
        try:
            return make()
        except UserError:
            self.done = before
            raise

    def finish(self, stopped: bool) -> None:
        """After the loop: a last pass of everything, or just a checkpoint for the one who asked to stop."""
        if stopped:
            if not self.saved():  # the newest one failed: try again, also where it was of this very point
                self.done.pop("checkpoint")
            self.once("checkpoint", self.save)
            self.outputs.stopped(self.clock.images_seen, saved=self.saved())
            return
        self.run_due(set(self.intervals))
        if not self.saved():
            raise UserError(
                f"the last checkpoint could not be written to {self.run_dir}: make room, then the same command again"
            )
        self.outputs.finished(self.clock.images_seen)

    def share_left_out(self) -> None:
        """One budget of unreadable images, and the same lost shards, for all processes; raises `UserError` past it."""
        if self.config.data.on_error == "skip":
            tolerance = self.loader.tolerance
            found = [list(tolerance.unreadable.items()), list(tolerance.lost.items())]
            tolerance.share(*zip(*from_all(found, self.group), strict=True))
            self.left_out = sorted(tolerance.unreadable)

    def log(self) -> None:
        self.share_left_out()
        fetched = from_all(self.loader.fetched / 1e6, self.group) if is_remote(self.config.data.path) else None
        means, row = self.statistics.read()
        images_seen = self.clock.images_seen
        now = schedules.scheduled(self.config, images_seen)
        means |= {
            "skipped_in_a_row": row,
            "lr/G": self.config.optim.lr_g * now.rate,
            "lr/D": self.config.optim.lr_d * now.rate,
            "ema/half_life": now.half_life,
            "augment/p": float(self.game.probability(now)) if self.config.augment.active else 0.0,
        }
        if self.reals:
            means |= steepness(self.game, self.reals, images_seen - self.config.train.batch)
        if self.probe:
            means |= self.probe.measure()
        self.outputs.log(images_seen, means, memory_mb(self.accelerator.device), fetched)
        self.outputs.losses(self.statistics.read_steps())
        self.tell(self.game.adaptive.warning())
        self.refuse_nonfinite(row)

    def refuse_nonfinite(self, row: int) -> None:
        """End the run where that many steps in a row were skipped, on all processes alike."""
        if row >= (limit := self.config.train.nonfinite_limit):
            seen, place, number = self.statistics.too_many()
            name = self.game.gradient_name(place, number)
            raise UserError(
                f"gradients were not finite in {limit} steps in a row up to image {seen} ({name}): "
                "lower optim.lr_g and optim.lr_d, raise loss.r1_gamma or set optim.clip, and go on by "
                "--override_resume; the last good checkpoint is kept"
            )

    def evaluate(self) -> bool:
        """Evaluate the averaged generator; whether it is the best so far."""
        self.settle_best()
        record = self.outputs.evaluate(self.game.ema, self.clock.images_seen)
        before, self.best = self.best, best.better(self.config.evaluation, record, self.best)
        return self.best is not before

    def settle_best(self) -> None:
        """The best is one that has a checkpoint: the last may not have been written, or another figure counts from now on."""
        self.tell(self.saver.wait())
        found = self.best
        if self.accelerator.is_main_process:
            found = best.saved(self.config.evaluation, self.best, self.run_dir, self.clock.images_seen)
            if found != self.best:
                now = f"the checkpoint at {found['images_seen']} images" if found else "that of the next evaluation"
                print(f"scalegan: the best by {self.config.evaluation.judged_by} is now {now}", file=sys.stderr)
        self.best = from_main(found, self.group)

    def save(self, *, pruned: bool = True) -> None:
        """Process 0 copies the tensors, and a thread writes them while the training goes on. Older checkpoints are deleted
        down to `log.keep`, unless `pruned` is False."""
        start = time.perf_counter()
        self.refuse_nonfinite(self.statistics.longest_row())  # a run that goes on from there would end with its first line
        self.share_left_out()
        self.outputs.losses(self.statistics.read_steps())  # no checkpoint keeps them: those before it are to be in the file
        everyones = state.everyones(self.game, self.statistics)
        self.settle_best()
        if self.accelerator.is_main_process:
            also = [self.best["images_seen"]] if self.best else []
            also += [] if pruned else [checkpoint.number(path) for path in checkpoint.folders(self.run_dir)]
            if waiting := self.outputs.waiting():  # a run that goes on from there would never write them
                self.saver.refuse(
                    f"checkpoint at {self.clock.images_seen} images was NOT saved: the disk has no room for lines of "
                    f"{' and '.join(waiting)} from before it"
                )
            else:
                self.saver.start(self.clock.images_seen, state.tensors(self.game) | everyones, self.manifest(), also)
        self.outputs.stalled += time.perf_counter() - start

    def snapshot(self) -> None:
        """The averages by power functions as they are now, on process 0."""
        start = time.perf_counter()
        if self.accelerator.is_main_process:
            averages = state.averages(self.game)
            copies = {part: {name: t.clone() for name, t in tensors.items()} for part, tensors in averages.items()}
            try:  # of copies, as a file of tensors has no place for one that layers share
                checkpoint.save(self.run_dir, self.clock.images_seen, copies, self.manifest(), checkpoint.SNAPSHOTS)
            except OSError as error:
                self.tell(f"snapshot at {self.clock.images_seen} images was NOT saved: {error}")
        self.outputs.stalled += time.perf_counter() - start

    def tell(self, problem: str | None) -> None:
        """Say loudly what went wrong, if anything did; the run goes on."""
        if problem:
            self.outputs.say(problem)

    def saved(self) -> bool:
        """Wait for the checkpoint under way; whether the newest is whole. The same answer on every process."""
        self.tell(self.saver.wait())
        return bool(from_main(self.saver.whole, self.group))

    def manifest(self) -> dict[str, Any]:
        """Counters and facts: what is no tensor of a checkpoint."""
        counters = {"best": self.best, "done": self.done, "left_out": self.left_out, "wandb_id": self.outputs.wandb_id}
        return state.facts(self.config, self.index, self.accelerator) | counters

    def resume(self) -> str | None:
        """Take up the newest valid checkpoint, or what a new run starts from; returns the W&B run id to go on with."""
        path = from_main(state.newest(self.run_dir) if self.accelerator.is_main_process else None, self.group)
        if path is None:
            if origin := from_main(run.started_from(self.run_dir) if self.accelerator.is_main_process else None, self.group):
                with as_one(self.group):
                    start.load(self.game, origin)
            return None
        with as_one(self.group):
            taken = checkpoint.read(Path(path))
            state.load(taken, self.game, self.statistics, self.accelerator)
        self.clock.images_seen = taken.images_seen
        self.best, self.done = taken.state["best"], taken.state["done"]
        self.left_out = taken.state.get("left_out", [])  # which older checkpoints have not
        self.settle_best()
        return taken.state["wandb_id"]  # type: ignore[no-any-return]


def memory_mb(device: torch.device) -> float:
    """Peak memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes, or blocks of 1,024 of them
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
