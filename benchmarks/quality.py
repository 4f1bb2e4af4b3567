"""How good a generator is after minutes on this machine: distances to the training set, copies, and the grid to look at.

    python benchmarks/quality.py                          every data set with its small preset
    python benchmarks/quality.py --recipe dcgan           the same with the well-known DCGAN, as the reference
    python benchmarks/quality.py --only kiwi64 --recipe fastgan --seed 1
    python benchmarks/quality.py --only kiwi64 -- --optim.lr_g=5e-4      other settings of `scalegan train`
    python benchmarks/quality.py --device cuda            the presets for a GPU at native sizes, 20 minutes each
    python benchmarks/quality.py --table                  all that was ever measured, and which goals that reaches

Each training is one `scalegan train`, as long as fits into the time: a short one before it tells images/s, and so how many
images to ask for, so that schedules end where the training does. The seconds in the table are those that it really took, from
the start of the process to its last step, with sample grids and checkpoints; the evaluation after that is not in them. The
recipe `refined` is two trainings, the small preset for half of the time and then its generator against a new critic on learnt
features (`--init_from`): seconds and images of both count, images/s is that of the second, which options after `--` are for.

What has been measured before, at the same commit and with the same settings, is skipped unless --again: a benchmark that was
stopped goes on by the same command. Figures are appended to benchmarks/out/quality.jsonl, and the last grid of each run is kept
beside the real one, with the samples that are nearest to training images and with random ones above the training images
nearest to them, in benchmarks/out/grids.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import common
from quality_table import HEAD, ON_GPU, TASKS, report, row, shards_of

FIGURES = common.OUT / "quality.jsonl"
WARM_UP = 128
"""Images that tell nothing of the speed, two steps at least."""
SLOWER = 2048
"""Images that tell the speed of a critic on learnt features, which is much slower than the others."""
SPARE = 0.03
"""Share of the time that is kept for sample grids, checkpoints, and a machine that slows down."""


OTHER_CRITIC = ("--model.init=dcgan", "--model.critic_norm=auto", "--model.critic_stem=0")
"""Takes back what the small presets say of DCGAN's critic alone."""
OTHER_FAMILY = (*OTHER_CRITIC, "--model.coarsest=7")
"""The same of both networks."""
HINGE = ("--loss.name=hinge", "--loss.r1_gamma=0", "--loss.penalty_every=1")
SLOW = ("--optim.lr_g=2e-4", "--optim.lr_d=2e-4")
R3GAN = (
    *OTHER_FAMILY, "--model.family=r3gan", "--model.norm_group=0", "--model.width=32", "--model.max_width=128",
    "--model.critic_width=32", "--model.critic_max_width=128", "--model.blocks=1", "--loss.name=relativistic",
    "--loss.r1_gamma=0.5", "--loss.r2_gamma=0.5", "--loss.penalty_every=1", "--optim.betas_g=[0.0,0.99]",
)  # fmt: skip
PROJECTED = (
    *OTHER_CRITIC, "--model.critic_family=projected", "--model.critic_width=16", "--model.critic_max_width=64",
    "--model.backbone_size=96", "--model.norm_group=8", *HINGE, "--optim.lr_d=5e-4",
)  # fmt: skip
VARIED = ("--loss.diversity_weight=2", "--loss.diversity_limit=0.3")
"""Against one picture a class, of which the critic `projected` is content."""
RECIPES: dict[str, tuple[str, ...]] = {
    "small": (),
    "half": ("--model.width=16", "--model.max_width=128", "--model.critic_width=16", "--model.critic_max_width=128"),
    "dcgan": (),
    "diffaugment": ("--augment.pipe=diffaugment",),
    "resnet": (*OTHER_FAMILY, "--model.family=resnet", "--model.width=32", "--model.critic_width=32", *HINGE, *SLOW),
    "biggan": (
        *OTHER_FAMILY, "--model.family=biggan", "--model.width=32", "--model.critic_width=32", *HINGE,
        "--optim.lr_g=1e-4", "--optim.lr_d=4e-4", "--optim.betas_g=[0.0,0.99]",
    ),
    "fastgan": (*OTHER_FAMILY, "--model.family=fastgan", "--model.width=16", "--model.critic_width=16", *HINGE, *SLOW),
    "projected": PROJECTED,
    "stylegan2": (
        *OTHER_FAMILY, "--model.family=stylegan2", "--model.norm_group=0", "--model.max_width=128",
        "--model.critic_max_width=128", "--model.map_layers=2", "--model.std_group=4", "--model.mixing=0",
        "--optim.betas_g=[0.0,0.99]",
    ),
    "r3gan": R3GAN,
    "refined": (
        *PROJECTED, "--train.batch=8", "--augment.brightness=0", "--augment.shift=0.05",
        "--optim.lr_g=3e-4",
    ),
}  # fmt: skip
"""Options of `scalegan train` that make another recipe of a small preset, or of the references."""
REFINED = 0.5
"""Share of the time of `refined` that its second training has."""
REFERENCES = ("dcgan", "diffaugment")
"""Recipes of the preset that `Task.reference` names: as it is, and with differentiable augmentation (Zhao et al. 2020)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=[*TASKS, *ON_GPU], action="append", help="this data set alone (may be given several times)"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="small", help="small: the presets configs/*_small.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, help="wall time of each training (default: 5, or 10 for fruits12 and brain, 20 on a GPU)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of the training (default: 2)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the presets for a GPU, at native sizes (default: cpu)"
    )
    parser.add_argument("--again", action="store_true", help="measure anew what is in the figures already")
    parser.add_argument("--table", action="store_true", help="measure nothing: print what was measured, and the goals")
    parser.add_argument(
        "options", nargs="*", metavar="-- --KEY=VALUE", help="settings of `scalegan train` that override the recipe"
    )
    args = parser.parse_args()
    if args.table:
        print("\n".join(report(common.read_jsonl(FIGURES))))
        return 0

    if args.recipe == "refined" and args.device != "cpu":
        sys.exit("--recipe refined has batches for a CPU: leave --device out, or take another recipe")
    device = device_name(args.device)
    print(common.headline(threads=args.threads, device=device))
    print(HEAD, flush=True)
    tasks = TASKS if args.device == "cpu" else ON_GPU
    if elsewhere := set(args.only or ()) - tasks.keys():
        sys.exit(f"--only {elsewhere.pop()} is no task of --device {args.device}: there are {', '.join(tasks)}")
    for name in args.only or tasks:
        asked = {
            "name": name, "recipe": args.recipe, "seed": args.seed, "minutes": args.minutes or tasks[name].minutes,
            "threads": args.threads, "options": args.options,
        }  # fmt: skip
        identity = asked | {"device": device, "commit": common.commit()}
        known = [figure for figure in common.read_jsonl(FIGURES) if identity.items() <= figure.items()]
        if not known or args.again:
            known.append(identity | common.machine() | measure(**asked, device=args.device))
            common.append_jsonl(FIGURES, known[-1])
        print(row(known[-1]), flush=True)
    print(f"grids: {common.OUT / 'grids'}")
    return 0


def device_name(device: str) -> str:
    """What a figure says it was trained on."""
    if device == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        sys.exit("--device is cuda but torch sees no GPU here: leave it out, or check the driver and torch build")
    return torch.cuda.get_device_name()


@dataclass(frozen=True)
class Training:
    """One `scalegan train` that has ended."""

    run_dir: Path
    seconds: float
    """From the start of its process to its last step."""
    images: int
    images_per_s: float
    tried: float
    """Images per second of the short training before it."""
    done: common.Done
    memory_mb: float


def measure(name: str, recipe: str, seed: int, minutes: float, threads: int, options: list[str], device: str) -> dict[str, Any]:
    """Train for `minutes`, evaluate, keep the grids."""
    task = (TASKS | ON_GPU)[name]
    way = f"{name}-{recipe}-seed{seed}"
    if options or minutes != task.minutes:
        way += "-" + hashlib.sha256(json.dumps([minutes, options]).encode()).hexdigest()[:6]
    common_options = (f"--train.device={device}", f"--train.seed={seed}")
    if recipe == "refined":
        first = train(name, "small", (1 - REFINED) * minutes, threads, common_options, f"{way}-first")
        begin = (f"--init_from={first.run_dir}", "--init_networks=generator")
        more = (*common_options, *begin, *(VARIED if task.classifier else ()), *options)
        trainings = [first, train(name, recipe, REFINED * minutes, threads, more, way)]
    else:
        trainings = [train(name, recipe, minutes, threads, (*common_options, *options), way)]
    last = trainings[-1]
    record = common.read_jsonl(last.run_dir / "evaluations.jsonl")[-1]
    images_seen = sum(training.images for training in trainings)
    return {
        "seconds": round(sum(training.seconds for training in trainings), 1),
        "images_seen": images_seen,
        "images_per_s": round(last.images_per_s, 1),
        "tried_images_per_s": round(last.tried, 1),
        "memory_mb": round(max(training.done.memory_mb for training in trainings)),
        "training_memory_mb": round(max(training.memory_mb for training in trainings)),
        "command_seconds": round(sum(training.done.seconds for training in trainings), 1),
        "precision": yaml.safe_load((last.run_dir / "config.yaml").read_text())["train"]["precision"],
        "evaluation": record | judged(name, last.run_dir, threads),
        "grid": str(keep_grids(last.run_dir, way, last.images).relative_to(common.REPO)),
    }


def train(name: str, recipe: str, minutes: float, threads: int, options: Sequence[str], way: str) -> Training:
    """As many images as fit into `minutes`, by the preset and the recipe."""
    from scalegan import settings

    task = (TASKS | ON_GPU)[name]
    preset = task.reference if recipe in REFERENCES else task.preset
    asked = [
        f"--config={preset}", f"--data.path={common.shards(shards_of(name))}", "--log.wandb=off", "--evaluation.every=0",
        "--evaluation.extractor=lite0", f"--evaluation.samples={task.generated}", f"--evaluation.real={task.real}",
        *task.options, *RECIPES[recipe], *options,
    ]  # fmt: skip
    batch = settings.parse(asked).config.train.batch
    timed = min(task.dry_images, SLOWER) if recipe in ("projected", "refined") else task.dry_images
    rate, start_up = try_out(name, asked, batch, timed, threads)
    images = max(1, int((60 * minutes - start_up) * rate * (1 - SPARE) / batch)) * batch

    run_dir = fresh(common.OUT / "runs" / way)
    began = time.time()
    done = common.run([*common.scalegan("train"), *asked, f"--run={run_dir}", f"--train.images={images}"], threads)
    timing = common.timing(run_dir, images)
    return Training(
        run_dir,
        seconds=started(run_dir) - began + timing[-1]["seconds"],
        images=images,
        images_per_s=statistics.median(line["images_per_s"] for line in timing),
        tried=rate,
        done=done,
        memory_mb=timing[-1]["memory_mb"],
    )


def judged(name: str, run_dir: Path, threads: int) -> dict[str, Any]:
    """What a second look says: other metrics of the same features, other features, copies, and classes."""
    task = (TASKS | ON_GPU)[name]
    metrics = "kid,prdc,ssim"
    held_out: tuple[str, ...] = ()
    if task.held_out:
        metrics, held_out = f"{metrics},memorisation", (f"--held-out={common.shards(task.held_out)}",)
    found = evaluated(run_dir, threads, f"--metrics={metrics}", *held_out)
    pixels = evaluated(run_dir, threads, "--extractor=benchmarks.pixels:Pixels", "--metrics=")
    found |= {key: value for key, value in pixels.items() if "fd_pixels" in key}
    if task.classifier:
        command = [sys.executable, str(common.REPO / "benchmarks" / "classifier.py"), shards_of(name), f"--run={run_dir}"]
        found |= json.loads(common.run(command, threads).text)
    return found


def evaluated(run_dir: Path, threads: int, *options: str) -> dict[str, Any]:
    record = run_dir / "judged.json"
    common.run([*common.scalegan("evaluate"), str(run_dir), f"--json={record}", *options], threads)
    values: dict[str, Any] = json.loads(record.read_text())
    return values


def try_out(name: str, options: list[str], batch: int, timed: int, threads: int) -> tuple[float, float]:
    """Images per second of a short training, and the seconds from the start of a process to its first step."""
    run_dir = fresh(common.OUT / "runs" / f"{name}-try")
    warm_up = max(2 * batch, WARM_UP, timed // 8)
    images = warm_up * (1 + max(1, timed // warm_up))
    short = [f"--run={run_dir}", f"--train.images={images}", f"--log.every={warm_up}", f"--log.checkpoint={images}"]
    short += [f"--log.samples={images}", "--evaluation.samples=64", "--evaluation.real=64"]
    began = time.time()
    common.run([*common.scalegan("train"), *options, *short], threads)
    rates = [line["images_per_s"] for line in common.timing(run_dir, images)[1:]]
    start_up = started(run_dir) - began
    shutil.rmtree(run_dir)
    return statistics.median(rates), start_up


def started(run_dir: Path) -> float:
    """When the first step of a run began: the grid of real images is the last thing before it."""
    return (run_dir / "samples" / "real.png").stat().st_mtime


def keep_grids(run_dir: Path, name: str, images_seen: int) -> Path:
    """Copies the last grid, and the real one; returns the former."""
    folder = common.OUT / "grids"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_dir / "samples" / "real.png", folder / f"{name}-real.png")
    for picture in (run_dir / "evaluations").glob("*-closest*.png"):
        shutil.copy(picture, folder / f"{name}-closest.png")
    shutil.copy(run_dir / "figures" / "random.png", folder / f"{name}-random.png")
    return Path(shutil.copy(run_dir / "samples" / f"{images_seen:09d}.png", folder / f"{name}.png"))


def fresh(run_dir: Path) -> Path:
    """A run folder that does not exist: what an interrupted measurement left is of no use, as its time is not known."""
    shutil.rmtree(run_dir, ignore_errors=True)
    return run_dir


if __name__ == "__main__":
    sys.exit(main())
