"""Two processes of one thread each against one process of two threads: throughput, and the losses side by side.

    python benchmarks/processes.py

Both train the same preset on the same shards; the two are started by `accelerate launch --config_file launch/cpu.yaml`.
Throughput is that of the preset (bfloat16), data and logging included, over a fixed number of steps after a warm-up; the
ratio is taken within each round and the median counts. Losses are compared in float32, step by step: they differ by the
rounding of sums that are taken in another order, and what a GAN makes of it.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from pathlib import Path

import common

WARM_UP = 16
"""Steps before the clock starts; then also those from one line of the log to the next."""
COMPARED = 32
"""Steps whose losses are compared."""
TARGET = 0.9
TOLERANCE = 1e-3
"""Largest relative difference of a loss: two networks that were not trained alike differ by tens of per cent."""
BATCH = 64


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
        print(f"images/s, bfloat16   1 process x {several} threads   {several} processes x 1 thread   ratio", flush=True)
        for number in range(args.rounds):
            rates = []
            for processes in (1, several):
                run_dir = Path(folder) / f"speed{processes}-{number}"
                memory = train(run_dir, processes, several // processes, WARM_UP + args.steps)
                rates.append((common.speed(run_dir, WARM_UP * BATCH), memory))
            (single, single_memory), (both, both_memory) = rates
            ratios.append(both / single)
            print(f"round {number + 1:<14} {single:21.1f} {both:25.1f} {ratios[-1]:7.2f}", flush=True)
        print(f"peak memory, MB      {single_memory:21.0f} {both_memory:25.0f}   (of process 0)")

        steps = []
        for processes in (1, several):
            run_dir = Path(folder) / f"losses{processes}"
            train(run_dir, processes, several // processes, COMPARED, "--train.precision=fp32", "--log.step_losses=true")
            steps.append(losses(run_dir))
    worst = compare(*steps)
    reached = common.verdict("throughput, median ratio", statistics.median(ratios), TARGET)
    same = worst < TOLERANCE
    print(f"largest relative difference of a loss: {worst:.1e} (target < {TOLERANCE:g}): {'reached' if same else 'MISSED'}")
    return 0 if reached and same else 1


def train(run_dir: Path, processes: int, threads: int, steps: int, *options: str) -> float:
    """One training of the kiwi preset; returns the peak memory of its first process up to the last step, in MB."""
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
    return float(common.read_jsonl(run_dir / "timing.jsonl")[-1]["memory_mb"])


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    """(images seen, loss of D, loss of G) of each step."""
    with (run_dir / "losses.csv").open(newline="") as file:
        return [(int(seen), float(d), float(g)) for seen, d, g in list(csv.reader(file))[1:]]


def compare(ones: list[tuple[int, float, float]], others: list[tuple[int, float, float]]) -> float:
    """Print some of the steps; returns the largest relative difference over all of them."""
    print("losses, float32  step        D, 1 process    D, several        G, 1 process    G, several")
    worst = 0.0
    for number, (one, other) in enumerate(zip(ones, others, strict=True), start=1):
        assert one[0] == other[0], f"step {number} ends at {one[0]} and at {other[0]} images"
        worst = max(worst, *(abs(a - b) / abs(a) for a, b in zip(one[1:], other[1:], strict=True)))
        if number.bit_count() == 1:  # steps 1, 2, 4, 8, ...
            print(f"                 {number:4}  {one[1]:18.6f} {other[1]:13.6f}  {one[2]:18.6f} {other[2]:13.6f}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
