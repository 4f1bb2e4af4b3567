"""Training throughput of scalegan, data and logging included, against bare PyTorch loops of the same networks and losses.

    python benchmarks/throughput.py

scalegan is `scalegan train --config kiwi_small` at the DCGAN's batch of 64: its reader over real shards, metrics, timing,
status lines and an offline W&B run. The bare loops (bare.py) read from a tensor in memory and log nothing but printed losses:
`plain` is float32, contiguous and with unfused Adam, `optimised` has every optimisation of scalegan's. Each runs in a process
of its own, in turn, for several rounds; a ratio is taken within each round, where the machine was the same, and the median of
the ratios counts. What is timed is a fixed number of steps after a warm-up; sample grids, checkpoints and evaluation lie
outside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

WARM_UP = 16
"""Steps before the clock starts; then also those from one line of the log to the next."""
BATCH = 64
TARGETS = {"plain": 1.6, "optimised": 0.97}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured (default: 5)")
    parser.add_argument("--steps", type=int, default=64, help=f"steps that are timed, a multiple of {WARM_UP} (default: 64)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (default: 2)")
    parser.add_argument("--child", choices=("scalegan", *TARGETS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < WARM_UP or args.steps % WARM_UP:
        parser.error(f"--steps {args.steps}: give a multiple of {WARM_UP}")
    if args.child:
        print(json.dumps(measure(args.child, args.steps)))
        return 0

    common.shards("kiwi64")
    print(common.headline(threads=args.threads, steps=args.steps, batch=BATCH))
    print("images/s        " + "".join(f"{name:>12}" for name in ("scalegan", *TARGETS)), flush=True)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ("scalegan", *TARGETS)}
    for number in range(args.rounds):
        for name, values in results.items():
            values.append(common.child("throughput.py", [name, "--steps", str(args.steps)], args.threads))
        rates = "".join(f"{values[-1]['images_per_s']:12.1f}" for values in results.values())
        print(f"round {number + 1:<10}{rates}", flush=True)
    medians = {name: statistics.median(v["images_per_s"] for v in values) for name, values in results.items()}
    memory = {name: max(v["memory_mb"] for v in values) for name, values in results.items()}
    fast = common.dtype()
    print("median          " + "".join(f"{value:12.1f}" for value in medians.values()))
    print("peak memory, MB " + "".join(f"{value:12.0f}" for value in memory.values()))
    print("dtype           " + "".join(f"{dtype:>12}" for dtype in (fast, "float32", fast)))
    reached = []
    for name, target in TARGETS.items():
        ratios = [a["images_per_s"] / b["images_per_s"] for a, b in zip(results["scalegan"], results[name], strict=True)]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        reached.append(
            common.verdict(f"scalegan / {name}, median of {args.rounds} ({span})", statistics.median(ratios), target)
        )
    return 0 if all(reached) else 1


def measure(name: str, steps: int) -> dict[str, float]:
    """Images per second and peak memory of one loop, in this process."""
    return measure_scalegan(steps) if name == "scalegan" else measure_bare(name, steps)


def measure_scalegan(steps: int) -> dict[str, float]:
    from scalegan import settings
    from scalegan.train import train

    folder = common.shards("kiwi64")
    with tempfile.TemporaryDirectory() as run:
        options = [f"--run={run}/run", f"--data.path={folder}", "--train.device=cpu", "--log.wandb=offline"]
        options += [f"--train.batch={BATCH}", "--model.norm_group=0"]  # the bare loops normalise the whole batch
        images = (WARM_UP + steps) * BATCH
        # The last pass comes after the clock has stopped; there is no need for much of it.
        options += [f"--log.every={WARM_UP * BATCH}", f"--train.images={images}", f"--log.samples={images}"]
        options += [f"--log.checkpoint={images}", "--evaluation.every=0", "--evaluation.samples=64", "--evaluation.real=64"]
        train(settings.parse(["--config=kiwi_small", *options]).config)
        lines = common.timing(Path(run) / "run", images)
    return {"images_per_s": common.speed(lines, WARM_UP * BATCH), "memory_mb": lines[-1]["memory_mb"]}


def measure_bare(form: str, steps: int) -> dict[str, float]:
    import torch

    import bare

    torch.manual_seed(0)
    recipe = preset_recipe()
    folder = common.shards("kiwi64")
    images = bare.preloaded(folder)
    if form == "optimised":
        images = images.contiguous(memory_format=torch.channels_last)
    loop = bare.BareLoop(recipe, form)
    place, number, start = len(images), 0, 0.0
    while number < WARM_UP + steps:
        if number == WARM_UP:
            start = time.perf_counter()
        if place + recipe.batch > len(images):
            order, place = torch.randperm(len(images)), 0
        losses = loop.step(images[order[place : place + recipe.batch]], number)
        number, place = number + 1, place + recipe.batch
        if number % WARM_UP == 0:
            print(number, *(loss.item() for loss in losses))
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_s": steps * recipe.batch / seconds, "memory_mb": memory}


def preset_recipe() -> Any:
    """The numbers of configs/kiwi_small.yaml, so that a change of the preset changes the bare loops with it."""
    import bare
    from scalegan import settings

    config = settings.parse(["--config=kiwi_small"]).config
    model, loss, optim, ema = config.model, config.loss, config.optim, config.ema
    return bare.Recipe(
        batch=BATCH, z_dim=model.z_dim, width=model.width, critic_width=model.critic_width,
        r1_gamma=loss.r1_gamma, penalty_every=loss.penalty_every,
        brightness=config.augment.brightness, shift=config.augment.shift,
        rate=optim.lr_g, betas_g=optim.betas_g, betas_d=optim.betas_d, half_life=ema.half_life, ramp=ema.ramp,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
