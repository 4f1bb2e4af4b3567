"""Two processes of one thread each against one process of two threads: throughput, and the losses side by side.

    python benchmarks/processes.py

Both train the same preset on the same shards; the two are started by `accelerate launch --config_file launch/cpu.yaml`.
Throughput is that of the preset at a batch of 64 (bfloat16 where the CPU has it), data and logging included, over a fixed
number of steps after a warm-up; the ratio is taken within each round and the median counts.

Losses are compared in float32, where the runs differ by nothing but the order of sums. A third run, one process with one
thread that takes each batch in as many rounds as there are processes (`train.accumulate`), adds in the very order of the
two processes: its losses have to be theirs at the preset's own learning rate, but for the last bit of their mean. With more
processes the collective adds in an order of its own, and this is shown without a target.

Against the one process that takes its batch at once, another order of sums, a GAN makes per cents of the last bit within a
few steps at that rate, whatever it comes from: how much is shown for processes, and for the rounds and threads of a single
process. With a hundredth of the learning rate nothing grows, and they have to agree to 1e-3.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

WARM_UP = 16
"""Steps before the clock starts; then also those from one line of the log to the next."""
COMPARED = 32
"""Steps whose losses are compared."""
TARGET = 0.9
SLOW = "1e-5"
"""Learning rate at which rounding does not grow, and two runs that were not trained alike still part."""
TOLERANCE = 1e-3
"""Largest relative difference of a loss at that rate."""
EXACT = 1e-6
"""Largest relative difference of a loss between runs that add in the same order, at the preset's own rate."""
BATCH = 64
Step = tuple[int, float, float]
"""Images seen, loss of D, loss of G."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured (default: 5)")
    parser.add_argument("--steps", type=int, default=64, help=f"steps that are timed, a multiple of {WARM_UP} (default: 64)")
    parser.add_argument("--processes", type=int, default=2, help="processes, and threads of the single one (default: 2)")
    args = parser.parse_args()
    if args.steps < WARM_UP or args.steps % WARM_UP:
        parser.error(f"--steps {args.steps}: give a multiple of {WARM_UP}")
    if args.processes < 2 or BATCH % args.processes:
        parser.error(f"--processes {args.processes}: give 2 or more that divide the batch of {BATCH}")
    several = args.processes

    common.shards("kiwi64")
    print(common.headline(batch=BATCH, steps=args.steps))
    with tempfile.TemporaryDirectory() as folder:
        ratios = []
        print(
            f"images/s, {common.dtype():<10} 1 process x {several} threads   {several} processes x 1 thread   ratio", flush=True
        )
        for number in range(args.rounds):
            rates = []
            for processes in (1, several):
                run_dir = Path(folder) / f"speed{processes}-{number}"
                timing = train(run_dir, processes, several // processes, WARM_UP + args.steps)
                rates.append((common.speed(timing, WARM_UP * BATCH), timing[-1]["memory_mb"]))
            (single, single_memory), (both, both_memory) = rates
            ratios.append(both / single)
            print(f"round {number + 1:<14} {single:21.1f} {both:25.1f} {ratios[-1]:7.2f}", flush=True)
        print(f"peak memory, MB      {single_memory:21.0f} {both_memory:25.0f}   (of process 0)")

        labels = (f"1 process x {several} threads", f"{several} processes x 1 thread", f"1 process, {several} rounds")
        print("losses, float32     " + "".join(f"{label:>28}" for label in labels), flush=True)
        rounds = f"--train.accumulate={several}"
        runs = (("a", 1, several), ("b", several, 1), ("c", 1, 1, rounds), ("d", 1, 1))
        whole, by_processes, in_rounds, one_thread = (losses(Path(folder) / name, *run) for name, *run in runs)
        show([whole, by_processes, in_rounds])
        slow = [losses(Path(folder) / name, p, t, *rate(SLOW)) for name, p, t in (("e", 1, several), ("f", several, 1))]
    print(
        "relative difference of a step's losses to those of the first, median, in 1e-3: "
        f"by processes {1e3 * median(whole, by_processes):.2f}, by rounds of one process {1e3 * median(whole, in_rounds):.2f}, "
        f"by threads {1e3 * median(whole, one_thread):.2f}"
    )
    exact, worst = max(differences(in_rounds, by_processes)), max(differences(*slow))
    limit = EXACT if several == 2 else math.inf
    reached = [
        common.verdict("largest by processes, the same sums, in 1e-6", 1e6 * exact, 1e6 * limit, at_least=False),
        common.verdict(f"... any sums, at learning rate {SLOW}, in 1e-3", 1e3 * worst, 1e3 * TOLERANCE, at_least=False),
        common.verdict("throughput, median ratio", statistics.median(ratios), TARGET),
    ]
    return 0 if all(reached) else 1


def train(run_dir: Path, processes: int, threads: int, steps: int, *options: str) -> list[dict[str, Any]]:
    """One training of the kiwi preset; returns its timing."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]
    launcher += ["--num_processes", str(processes), "--num_cpu_threads_per_process", str(threads), "-m", "scalegan.train"]
    command = launcher if processes > 1 else common.scalegan("train")
    images = steps * BATCH
    settings = [
        "--config=kiwi_small", f"--run={run_dir}", f"--data.path={common.shards('kiwi64')}", "--train.device=cpu",
        f"--train.batch={BATCH}", f"--train.images={images}", f"--log.every={WARM_UP * BATCH}", f"--log.samples={images}",
        f"--log.checkpoint={images}", "--log.wandb=offline", "--evaluation.every=0", "--evaluation.samples=64",
        "--evaluation.real=64",
    ]  # fmt: skip
    common.run([*command, *settings, *options], threads)
    return common.timing(run_dir, images)


def losses(run_dir: Path, processes: int, threads: int, *options: str) -> list[Step]:
    """The losses of a short training in float32."""
    train(run_dir, processes, threads, COMPARED, "--train.precision=fp32", "--log.step_losses=true", *options)
    with (run_dir / "losses.csv").open(newline="") as file:
        return [(int(seen), float(d), float(g)) for seen, d, g in list(csv.reader(file))[1:]]


def rate(learning_rate: str) -> tuple[str, str]:
    return f"--optim.lr_g={learning_rate}", f"--optim.lr_d={learning_rate}"


def show(runs: list[list[Step]]) -> None:
    """Losses of D and G in each run, at steps 1, 2, 4, 8, ..."""
    for number, steps in enumerate(zip(*runs, strict=True), start=1):
        if number.bit_count() == 1:
            print(f"step {number:<15}" + "".join(f"    D {d:9.6f}  G {g:9.6f}" for _, d, g in steps))


def differences(ones: list[Step], others: list[Step]) -> list[float]:
    """Relative difference of each step's losses, the larger of D's and G's."""
    pairs = list(zip(ones, others, strict=True))
    assert all(one[0] == other[0] for one, other in pairs), "the steps end at different images"
    return [max(abs(a - b) / abs(a) for a, b in zip(one[1:], other[1:], strict=True)) for one, other in pairs]


def median(ones: list[Step], others: list[Step]) -> float:
    return statistics.median(differences(ones, others))


if __name__ == "__main__":
    sys.exit(main())
