"""How good a generator is after five minutes on this machine: Frechet distance to the training set, and the grid to look at.

    python benchmarks/quality.py                          the four data sets with their small recipes
    python benchmarks/quality.py --recipe dcgan           the same with the well-known DCGAN, as the reference
    python benchmarks/quality.py --only kiwi64 -- --optim.lr_g=5e-4      one of them, with other settings of `scalegan train`

Each training is one `scalegan train`, as long as fits into the time: a short one before it tells images/s, and so how many
images to ask for, so that schedules end where the training does. The seconds in the table are those that it really took, from
the start of the process to its last step, with sample grids and checkpoints; the evaluation after that is not in them. What
has been measured before, at the same commit and with the same settings, is skipped unless --again. Figures are appended to
benchmarks/out/quality.jsonl and the last grid of each run is kept beside the real one in benchmarks/out/grids.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import common

FIGURES = common.OUT / "quality.jsonl"
KIWI_TARGET = 62.0
"""fd_lite0 that the small recipe has to reach on kiwi64 in five minutes."""
WARM_UP = 16
"""Steps that tell nothing of the speed; then also those from one line of the log to the next in the dry phase."""
SPARE = 0.03
"""Share of the time that is kept for sample grids, checkpoints, and a machine that slows down."""


@dataclass(frozen=True)
class Task:
    """One row: a data set, its small preset, and what is compared."""

    preset: str
    generated: int
    real: int
    """0 is all of the training set."""
    dry_steps: int
    """Steps that tell the speed, some ten seconds of them."""


TASKS = {
    "kiwi64": Task("kiwi_small", generated=512, real=0, dry_steps=48),
    "kiwi100": Task("kiwi_small", generated=512, real=0, dry_steps=32),
    "brain": Task("brain_small", generated=2000, real=2000, dry_steps=32),
    "fashion": Task("fashion_small", generated=2000, real=2000, dry_steps=256),
}
COLUMNS = (
    "data set", "recipe", "fd_lite0", "floor", "generated / real", "images seen", "images/s", "seconds", "train MB", "peak MB",
    "dtype", "commit",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TASKS, action="append", help="this data set alone (may be given several times)")
    parser.add_argument("--recipe", choices=("small", "dcgan"), default="small", help="small: the presets configs/*_small.yaml")
    parser.add_argument("--minutes", type=float, default=5.0, help="wall time of each training (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training (default: 2)")
    parser.add_argument("--again", action="store_true", help="measure anew what is in the figures already")
    parser.add_argument(
        "options", nargs="*", metavar="-- --KEY=VALUE", help="settings of `scalegan train` that override the preset"
    )
    args = parser.parse_args()

    print(common.headline(threads=args.threads, minutes=args.minutes))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    reached = True
    for name in args.only or TASKS:
        identity = {
            "name": name, "recipe": args.recipe, "minutes": args.minutes, "threads": args.threads, "options": args.options,
            "commit": common.commit(),
        }  # fmt: skip
        known = [figure for figure in common.read_jsonl(FIGURES) if identity.items() <= figure.items()]
        if not known or args.again:
            known.append(identity | common.machine() | measure(name, args.recipe, args.minutes, args.threads, args.options))
            common.append_jsonl(FIGURES, known[-1])
        print(row(known[-1]), flush=True)
        if name == "kiwi64" and args.recipe == "small" and not args.options and args.minutes == 5:
            reached = known[-1]["evaluation"]["fd_lite0"] <= KIWI_TARGET
    print(f"grids: {common.OUT / 'grids'}")
    if not reached:
        print(f"kiwi64 did not reach fd_lite0 {KIWI_TARGET:g}: MISSED")
    return 0 if reached else 1


def measure(name: str, recipe: str, minutes: float, threads: int, extra: list[str]) -> dict[str, Any]:
    """Train for `minutes`, evaluate, keep the grids."""
    from scalegan import settings

    task = TASKS[name]
    preset = task.preset if recipe == "small" else recipe
    options = [
        f"--config={preset}", f"--data.path={common.shards(name)}", "--train.device=cpu", "--log.wandb=off",
        "--evaluation.every=0", "--evaluation.extractor=lite0", f"--evaluation.samples={task.generated}",
        f"--evaluation.real={task.real}", *extra,
    ]  # fmt: skip
    config = settings.parse(options).config
    batch = config.train.batch
    rate, start_up = try_out(name, options, batch, task.dry_steps, threads)
    images = max(1, int((60 * minutes - start_up) * rate * (1 - SPARE) / batch)) * batch

    run_dir = fresh(common.OUT / "runs" / f"{name}-{recipe}")
    began = time.time()
    done = common.run([*common.scalegan("train"), *options, f"--run={run_dir}", f"--train.images={images}"], threads)
    timing = common.timing(run_dir, images)
    record = common.read_jsonl(run_dir / "evaluations.jsonl")[-1]
    seconds = started(run_dir) - began + timing[-1]["seconds"]
    return {
        "seconds": round(seconds, 1),
        "images_seen": record["images_seen"],
        "images_per_s": round(statistics.median(line["images_per_s"] for line in timing), 1),
        "tried_images_per_s": round(rate, 1),
        "memory_mb": round(done.memory_mb),
        "training_memory_mb": round(timing[-1]["memory_mb"]),
        "command_seconds": round(done.seconds, 1),
        "precision": yaml.safe_load((run_dir / "config.yaml").read_text())["train"]["precision"],
        "grid": str(keep_grids(run_dir, f"{name}-{recipe}", record["images_seen"]).relative_to(common.REPO)),
        "evaluation": record,
    }


def try_out(name: str, options: list[str], batch: int, steps: int, threads: int) -> tuple[float, float]:
    """Images per second of a short training, and the seconds from the start of a process to its first step."""
    run_dir = fresh(common.OUT / "runs" / f"{name}-try")
    images = (WARM_UP + steps) * batch
    short = [f"--run={run_dir}", f"--train.images={images}", f"--log.every={WARM_UP * batch}", f"--log.checkpoint={images}"]
    short += [f"--log.samples={images}", "--evaluation.samples=64", "--evaluation.real=64"]
    began = time.time()
    common.run([*common.scalegan("train"), *options, *short], threads)
    rate, start_up = common.speed(common.timing(run_dir, images), WARM_UP * batch), started(run_dir) - began
    shutil.rmtree(run_dir)
    return rate, start_up


def started(run_dir: Path) -> float:
    """When the first step of a run began: the grid of real images is the last thing before it."""
    return (run_dir / "samples" / "real.png").stat().st_mtime


def keep_grids(run_dir: Path, name: str, images_seen: int) -> Path:
    """Copies the last grid, and the real one; returns the former."""
    folder = common.OUT / "grids"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_dir / "samples" / "real.png", folder / f"{name}-real.png")
    return Path(shutil.copy(run_dir / "samples" / f"{images_seen:09d}.png", folder / f"{name}.png"))


def fresh(run_dir: Path) -> Path:
    """A run folder that does not exist: what an interrupted measurement left is of no use, as its time is not known."""
    shutil.rmtree(run_dir, ignore_errors=True)
    return run_dir


def row(figure: dict[str, Any]) -> str:
    """A line of the Markdown table."""
    record = figure["evaluation"]
    size = "x".join(str(n) for n in image_size(figure["name"]))
    cells = (
        f"{figure['name']} {size}", " ".join([figure["recipe"], *figure["options"]]), f"{record['fd_lite0']:.1f}",
        f"{record['fd_lite0_floor']:.1f}", f"{record['generated']} / {record['real']}", figure["images_seen"],
        f"{figure['images_per_s']:.0f}", f"{figure['seconds']:.0f}", figure["training_memory_mb"], figure["memory_mb"],
        figure["precision"], figure["commit"],
    )  # fmt: skip
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def image_size(name: str) -> tuple[int, int]:
    from scalegan.data.index import read_index

    index = read_index(str(common.shards(name)))
    return index.height, index.width


if __name__ == "__main__":
    sys.exit(main())
