"""What it costs to be safe: checks at every step, checkpoints, and the start of a run that goes on.

    python benchmarks/reliability.py

checks: a training of `kiwi_small` puts the stop notice, the watchdog and the check for gradients that are not finite aside and
back by turns (on, off, off, on). So what is compared lies seconds apart in one process: two trainings would differ by more than
what is looked for. Hashing of shards comes once, at the start: it is timed by itself, from an empty cache, and charged to a
single epoch, though neither the next epoch nor the next run repeats it.

checkpoints: a training saves at every second line of timing.jsonl. What it waits for them is in that file (`save_share`); the
whole cost, with the writing beside it on busy cores, is what these lines take longer than those before and after. As a default
interval lasts minutes, both are converted to it.

resume: fresh processes import everything, take up a checkpoint at some place of an epoch, and time from the trainer's start to
the end of its first step. Each of these has the penalty, so that all are equally long.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    from torch import Tensor

    from scalegan.config import Config
    from scalegan.data.index import Index

BATCH, TURN = 8, 8
"""The preset's batch, and its steps from one penalty to the next, so that all turns hold the same work."""
WARM_UP, LINE = 16, 32
"""Steps before the clock starts; and those from one line of timing.jsonl to the next, for checkpoints: time to write one."""
LAUNCHES = {"1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}
READERS = ("resident", "stream")
MOST, NOISE = 2.0, 1.0
"""Per cent of throughput: what safety may cost, and to which the cost of checks has to be known."""
FIRST_STEP = 10.0
"""Seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one of the three (default: all)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each kind that are measured (default: 2)")
    parser.add_argument("--turns", type=int, default=8, help="times on, off, off, on in each (default: 8)")
    parser.add_argument("--checkpoints", type=int, default=6, help="checkpoints that are measured (default: 6)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child[0]](*args.child[1:])))
        return 0
    if min(args.rounds, args.turns - 1, args.checkpoints - 1) < 1:
        parser.error("give --rounds 1, --turns 2 and --checkpoints 2 at least")
    from scalegan.data.index import read_index

    index = read_index(str(common.shards("kiwi64")))
    print(common.headline(threads=2, batch=BATCH, dtype=common.dtype()), flush=True)
    reached = [reached for name, part in PARTS.items() if args.only in (None, name) for reached in part(args, index)]
    return 0 if all(reached) else 1


def folder() -> tempfile.TemporaryDirectory[str]:
    """Beside the shards, on a disk: the usual place may lie in memory, where writing and flushing cost nothing."""
    return tempfile.TemporaryDirectory(dir=common.OUT)


def config_of(run: Path, images: int, *options: str) -> Config:
    from scalegan import settings

    settled = [
        "--config=kiwi_small", f"--run={run}", f"--data.path={common.shards('kiwi64')}", f"--data.cache={run.parent / 'cache'}",
        "--train.device=cpu", f"--train.batch={BATCH}", f"--train.images={images}", f"--log.samples={images}",
        f"--log.checkpoint={images}", "--log.wandb=offline",
        "--evaluation.every=0", "--evaluation.samples=64", "--evaluation.real=64",
    ]  # fmt: skip
    return settings.parse([*settled, *options]).config


# --- checks


def measure_checks(args: argparse.Namespace, index: Index) -> Iterator[bool]:
    took: dict[str, list[float]] = {launch: [] for launch in LAUNCHES}
    for _, (launch, shape) in itertools.product(range(args.rounds), LAUNCHES.items()):
        took[launch] += line_seconds(train_with_checks(*shape, args.turns)[WARM_UP // TURN - 1 :])
    hashing, size = time_hashing(index), sum(shard.bytes for shard in index.shards) / 1e6
    print(f"hashing {size:.2f} MB of shards, once a machine: {1e3 * hashing:.2f} ms, {size / hashing:.0f} MB/s")
    print("throughput, checks on / off   images/s off  median ratio   (quartiles)        known to   hashing in one epoch")
    for launch, seconds in took.items():
        values = with_to_without(seconds)
        low, ratio, high = statistics.quantiles(values)
        rate = TURN * BATCH / statistics.median(turn for number, turn in enumerate(seconds) if is_off(number))
        # Two standard errors of the median of normal values, by their quartiles: a stray disturbance counts in neither.
        known = 100 * 2 * 1.253 * (high - low) / 1.349 / len(values) ** 0.5
        in_epoch = 100 * rate * hashing / index.samples
        print(f"{launch:<28}{rate:14.1f}{ratio:14.4f}   ({low:.4f} to {high:.4f}){known:9.2f} %{in_epoch:21.3f} %", flush=True)
        if known > NOISE:
            print(f"  too noisy to tell {NOISE:g} %, which counts as missed: let nothing else run, or take more --turns")
        cost = 100 * (1 - ratio) + in_epoch
        yield common.verdict(f"cost of checks, %, {launch}", cost, MOST, at_least=False) and known <= NOISE


def train_with_checks(processes: int, threads: int, times: int) -> list[dict[str, Any]]:
    """The timing of one training whose checks are off by turns."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]
    launcher += ["--num_processes", str(processes), "--num_cpu_threads_per_process", str(threads)]
    command = [sys.executable, *(launcher if processes > 1 else ())]
    with folder() as place:
        run = Path(place) / "run"
        common.run([*command, "benchmarks/reliability.py", "--child", "checks", str(run), str(times)], threads)
        if not any(path.stat().st_size for path in (run.parent / "cache" / "checked").glob("*")):
            sys.exit("the training has not checked its shards: there is no record of it in data.cache")
        return common.timing(run, (WARM_UP + 4 * times * TURN) * BATCH)


def train_in_turns(run: str, times: str) -> None:
    """Train, with every line of timing.jsonl the end of a turn."""
    from scalegan import trainer
    from scalegan.train import train
    from scalegan.watchdog import Watchdog

    nothing = Nothing()

    class Trainer(trainer.Trainer):
        off = False

        def log(self) -> None:
            super().log()
            turn = self.clock.images_seen // (TURN * BATCH) - WARM_UP // TURN
            if is_off(turn) and not self.off:
                self.watchdog.close()
                self.told, self.watched, self.notice, self.watchdog = self.notice, self.watchdog, nothing, nothing
                self.game._step = lambda *args: nothing.optimise(self.game, *args)
            elif self.off and not is_off(turn):
                self.notice, self.watchdog = self.told, Watchdog(self.watched.limit, self.run_dir, self.watched.rank)
                del self.game._step  # the method is back
            self.off = is_off(turn)

    trainer.Trainer = Trainer
    images = (WARM_UP + 4 * int(times) * TURN) * BATCH
    train(config_of(Path(run), images, f"--log.every={TURN * BATCH}", "--data.reader=stream"))
    steps = 2 * int(times) * TURN
    if nothing.calls != {"asked": steps, "step": steps, "paused": steps, "optimise": 2 * steps}:
        sys.exit(f"the checks were to be off for {steps} steps, not {dict(nothing.calls)}")


def is_off(turn: int) -> bool:
    """On, off, off, on: what drifts meanwhile falls on both alike. Turns before the first are warm-up."""
    return turn >= 0 and turn % 4 in (1, 2)


@dataclass
class Nothing:
    """What stands for the checks while they are off. It counts its calls, as else nothing might be compared with itself."""

    calls: Counter[str] = field(default_factory=Counter)

    def asked(self) -> bool:
        self.calls["asked"] += 1
        return False

    def step(self, images_seen: int) -> None:
        self.calls["step"] += 1

    def paused(self) -> AbstractContextManager[None]:
        self.calls["paused"] += 1
        return nullcontext()

    def optimise(
        self, game: Any, optimizer: Any, network: Any, rate: float, betas: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """`Game._step` as it would be if nobody asked whether the gradients are finite."""
        import torch

        self.calls["optimise"] += 1
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = rate, betas
        optimizer.optimizer.found_inf = None
        optimizer.step()
        return torch.zeros(()), torch.zeros(())


def line_seconds(lines: Sequence[dict[str, Any]]) -> list[float]:
    """From each line of timing to the next."""
    return [after["seconds"] - before["seconds"] for before, after in itertools.pairwise(lines)]


def with_to_without(took: Sequence[float]) -> list[float]:
    """Throughput with the checks over that without, of each on, off, off, on."""
    return [(b + c) / (a + d) for a, b, c, d in zip(*(took[first::4] for first in range(4)), strict=True)]


def time_hashing(index: Index) -> float:
    """Seconds in which all shards are opened for the first time: read through, out of the system's file cache, and hashed."""
    from scalegan.config import DataConfig
    from scalegan.data.storage import Storage

    seconds = []
    for _ in range(9):
        with folder() as empty:
            storage = Storage(index, DataConfig(path=index.root, cache=empty))
            start = time.perf_counter()
            for number in range(len(index.shards)):
                os.close(storage.open(number))
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# --- checkpoints


def measure_checkpoints(args: argparse.Namespace, index: Index) -> Iterator[bool]:
    from scalegan.config import LogConfig

    with folder() as place:
        found = common.child("reliability.py", ["checkpoints", f"{place}/run", str(args.checkpoints)], threads=2)
        lines = common.timing(Path(place) / "run", 2 * (args.checkpoints + 1) * LINE * BATCH)
    stalls, costs, line = costs_of_checkpoints(lines)
    if max(found["written"]) > line:
        sys.exit(f"writing a checkpoint took more than {LINE} steps, so that no line is free of it: take a faster disk")
    print(f"seconds for a checkpoint of {found['mb']:.1f} MB, median of {len(costs)} (lowest to highest)")
    for what, values in {"waited (save_share)": stalls, "trained longer": costs, "written beside it": found["written"]}.items():
        print(f"  {what:<25}{statistics.median(values):7.3f}   ({min(values):.3f} to {max(values):.3f})")
    stall, cost = statistics.median(stalls), statistics.median(costs)
    default, rate = LogConfig().checkpoint, LINE * BATCH / line
    lasts = default / rate + cost
    measured = f"{2 * line / (2 * line + cost):.4f} measured, one in {2 * LINE * BATCH} images"
    print(f"throughput, with / without: {measured}; {1 - cost / lasts:.4f} converted, one in {default} ({rate:.1f} images/s)")
    yield common.verdict("stall, % of the default interval", 100 * stall / lasts, MOST, at_least=False)
    yield common.verdict("whole cost, % of the default interval", 100 * cost / lasts, MOST, at_least=False)


def train_with_checkpoints(run: str, number: str) -> dict[str, Any]:
    """Train with a checkpoint after every second line of timing.jsonl; returns how long each was written, and the size."""
    from scalegan import trainer
    from scalegan.background import Saver
    from scalegan.train import train

    written: list[float] = []

    class Timed(Saver):
        def _save(self, *args: Any) -> None:
            start = time.perf_counter()
            super()._save(*args)
            written.append(time.perf_counter() - start)

    trainer.Saver = Timed
    every = LINE * BATCH
    images = 2 * every * (int(number) + 1)
    train(config_of(Path(run), images, f"--log.every={every}", f"--log.checkpoint={2 * every}"))
    last = Path(run, "checkpoints", f"{images:09d}")  # it is made after the last line
    return {"written": written[:-1], "mb": sum(path.stat().st_size for path in last.iterdir()) / 1e6}


def costs_of_checkpoints(lines: Sequence[dict[str, Any]]) -> tuple[list[float], list[float], float]:
    """Seconds that training waited for each checkpoint; that it took longer for it; and of a line without one."""
    took = line_seconds(lines)
    quiet, busy = took[0::2], took[1::2]
    stalls = [line["save_share"] * seconds for line, seconds in zip(lines[2::2], busy, strict=True)]
    costs = [seconds - (a + b) / 2 for seconds, (a, b) in zip(busy, itertools.pairwise(quiet), strict=True)]
    return stalls, costs, statistics.median(quiet)


# --- resume


def measure_resume(args: argparse.Namespace, index: Index) -> Iterator[bool]:
    points = resume_points(index.samples)
    seconds: dict[str, dict[str, list[float]]] = {reader: {point: [] for point in points} for reader in READERS}
    with folder() as place:
        base, again = f"{place}/base", f"{place}/again"
        new = common.child("reliability.py", ["resume", base, "resident"], threads=2)["seconds"]
        for _, point, reader in itertools.product(range(args.rounds), points, READERS):
            child = ["resume", again, reader, base, str(points[point])]
            seconds[reader][point].append(common.child("reliability.py", child, threads=2)["seconds"])
            shutil.rmtree(again)
    print(f"seconds to the end of the first step, median of {args.rounds}; of a new run: {new:.2f}")
    print(f"{'':<20}" + "".join(f"{point:>20}" for point in points) + "   largest / smallest")
    for reader, times in seconds.items():
        medians = [statistics.median(values) for values in times.values()]
        print(f"{reader:<20}" + "".join(f"{value:20.2f}" for value in medians) + f"{max(medians) / min(medians):21.2f}")
    slowest = max(max(values) for times in seconds.values() for values in times.values())
    yield common.verdict("first step after a resume, slowest of all, seconds", slowest, FIRST_STEP, at_least=False)


def resume_points(samples: int) -> dict[str, int]:
    """Images seen at places of an epoch of so many. Multiples of a turn: the next step has the penalty."""
    turn = TURN * BATCH

    def nearest(place: int) -> int:
        return min(range(turn, turn * (samples + 1), turn), key=lambda seen: abs(seen % samples - place))

    middle = nearest(samples // 2)
    late = middle + 2000 * turn * samples
    return {"start of an epoch": nearest(0), "middle": middle, "end": nearest(samples - 1), f"epoch {late // samples:,}": late}


def resume(run: str, reader: str, base: str = "", images_seen: str = "0") -> dict[str, float]:
    """Seconds from the start of the trainer to the end of its first step; then it is told to stop, and saves."""
    import wandb  # noqa: F401 (else the trainer would import it, once the clock runs)

    from scalegan import checkpoint, trainer
    from scalegan.train import train

    if base:
        (newest,) = checkpoint.list_valid(Path(base))
        shutil.copytree(base, run, ignore=shutil.ignore_patterns("checkpoints"))
        parts = {name: newest.tensors(name) for name in (file.removesuffix(".safetensors") for file in newest.files)}
        checkpoint.save(Path(run), int(images_seen), parts, newest.state)
    seconds: list[float] = []

    class Trainer(trainer.Trainer):
        def __init__(self, *args: Any) -> None:
            start = time.perf_counter()
            super().__init__(*args)
            assert self.clock.images_seen == int(images_seen), "the checkpoint was not taken up"

            def end_of_step(seen: int) -> None:
                seconds.append(time.perf_counter() - start)
                self.notice.latched = True

            self.watchdog.step = end_of_step

    trainer.Trainer = Trainer
    train(config_of(Path(run), 10**9, f"--data.reader={reader}"))  # it is stopped long before
    return {"seconds": seconds[0]}


PARTS = {"checks": measure_checks, "checkpoints": measure_checkpoints, "resume": measure_resume}
CHILDREN = {"checks": train_in_turns, "checkpoints": train_with_checkpoints, "resume": resume}


if __name__ == "__main__":
    sys.exit(main())
