"""Small training runs, and what to compare of them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from scalegan import settings
from scalegan.config import Config

ERROR = "scalegan: error: "
SMALL = {
    "train.batch": 32,
    "train.precision": "fp32",
    "model.width": 8,
    "model.max_width": 16,
    "model.critic_width": 8,
    "model.critic_max_width": 16,
    "log.every": 64,
    "log.samples": 10_000_000,
    "log.checkpoint": 10_000_000,
    "log.grid": 16,
    "log.wandb": "off",
    "evaluation.every": 0,
    "evaluation.samples": 32,
    "evaluation.real": 32,
    "evaluation.batch": 32,
    "evaluation.metrics": "",
}
# Everything that has a state: averages, moments, augmentation, a penalty every other step, rounds, labels.
FULL = {
    "model.critic_norm": "none",
    "model.init": "kaiming",
    "model.conditional": "true",
    "loss.r1_gamma": 0.5,
    "loss.penalty_every": 2,
    "loss.diversity_weight": 1.0,
    "augment.brightness": 0.5,
    "augment.shift": 0.125,
    "augment.mirror": "true",
    "train.accumulate": 2,
    "optim.schedule": "cosine",
    "optim.warmup": 128,
    "augment.p": 0.8,
    "burn_in.images": 256,
    "burn_in.beta2": 0.9,
    "burn_in.gamma": 2.0,
    "ema.half_life": 500,
    "ema.power": "[0.05, 0.1]",
    "log.step_losses": "true",
}


def arguments(shards: Path, run: Path, images: int, **changes: Any) -> list[str]:
    """Of `scalegan train`; names of options with `__` for the dot."""
    given = {name.replace("__", "."): value for name, value in changes.items()}
    options = {"data.path": shards, "run": run, "train.images": images} | SMALL | given
    return [f"--{name}={value}" for name, value in options.items()]


def configured(shards: Path, run: Path, images: int, **changes: Any) -> Config:
    return settings.parse(arguments(shards, run, images, **changes)).config


def unmeasured(outputs: Any, ema: Any, images_seen: int) -> dict[str, Any]:
    """`Outputs.evaluate` without its seconds."""
    return {outputs.config.evaluation.judged_by: 1.0, "images_seen": images_seen}


def training(config: Config, evaluation: bool = False) -> bool:
    """One process of a run; whether its end was reached. Without evaluation and plots, which take seconds, unless asked."""
    from scalegan import outputs, train

    if not evaluation:
        outputs.Outputs.evaluate = unmeasured  # type: ignore[method-assign]
        outputs.Outputs.finished = lambda self, images_seen: self.say(f"done: {images_seen}")  # type: ignore[method-assign]
    return train.train(config)


def stopped_training(config: Config, rank: int | None, number: int, images_seen: int) -> bool:
    """`training` in which process `rank` (None: each) gets the signal `number` in the middle of the step from `images_seen`."""

    def stop() -> None:
        if rank is None or int(os.environ.get("RANK", "0")) == rank:
            os.kill(os.getpid(), number)

    return disturbed_training(config, images_seen, stop)


def disturbed_training(config: Config, images_seen: int, disturb: Callable[[], None]) -> bool:
    """`training` in which `disturb` is called in the middle of the step from `images_seen`."""
    from scalegan.steps import Game

    step: Callable[..., Any] = Game.generator_step

    def interrupted(self: Game, reals: Any, seen: int) -> Any:
        if seen == images_seen:
            disturb()
        return step(self, reals, seen)

    Game.generator_step = interrupted  # type: ignore[method-assign]
    return training(config)


def in_float64() -> None:
    """Reckon in float64 throughout, so that a difference between two runs on this process is a mistake and no rounding."""
    import torch

    from scalegan import draws, probe, sampling, steps

    torch.set_default_dtype(torch.float64)
    send, normalise = draws.Draws._send, steps.normalise
    sampled = sampling.random.normal
    sampling.random.normal = lambda *arguments: sampled(*arguments).astype(np.float64)
    draws.Draws._send = lambda self, values: send(self, values.astype(np.float64) if values.dtype == np.float32 else values)
    steps.normalise = probe.normalise = lambda images: normalise(images).double()


def only_traced() -> None:
    """Compile with all of the compiler but its code generator, which takes minutes."""
    import torch

    plain = torch.nn.Module.compile
    torch.nn.Module.compile = lambda self, **options: plain(self, backend="aot_eager", **options)


def command(argv: list[str]) -> int:
    """`scalegan train`, as one process of a launcher; returns the exit code."""
    from scalegan import cli

    return cli.main(["train", *argv])


def error_lines(text: str) -> list[str]:
    """Our own lines for users among all that was written."""
    return [line for line in text.splitlines() if line.startswith(ERROR)]


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def tensors(run: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(newest(run) / f"{name}.safetensors")


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def contents(run: Path) -> dict[str, bytes]:
    """What has to be equal to the byte when a run was interrupted.

    The last checkpoint's tensors, snapshots, metrics, losses, samples.
    """
    files = [*newest(run).glob("*.safetensors"), run / "metrics.jsonl", run / "losses.csv", *(run / "samples").iterdir()]
    files += [run / "evaluations.jsonl", run / "samples.jsonl"]
    snapshots = {str(file.relative_to(run)): file.read_bytes() for file in run.glob("snapshots/*/*.safetensors")}
    return {file.name: file.read_bytes() for file in files if file.is_file()} | snapshots
