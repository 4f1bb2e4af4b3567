"""What a checkpoint holds of a run: put together where it is saved, and taken up again where the run goes on."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator
from torch import Tensor

from scalegan import __version__, checkpoint, power, run
from scalegan.config import Config
from scalegan.data.index import Index
from scalegan.errors import UserError
from scalegan.statistics import Statistics
from scalegan.steps import Game

Tensors = dict[str, dict[str, Tensor]]
"""By part and name: each part is a file."""


def tensors(game: Game) -> Tensors:
    """All that a game needs to go on; what processes have of their own is `everyones`."""
    return {
        "generator": game.bare_generator.state_dict(),
        "critic": game.bare_critic.state_dict(),
        "ema": game.ema.state_dict(),
        "opt_g": checkpoint.optimizer_tensors(game.opt_g.optimizer),
        "opt_d": checkpoint.optimizer_tensors(game.opt_d.optimizer),
        **averages(game),
    }


def averages(game: Game) -> Tensors:
    """Those by power functions, of which snapshots are made."""
    return {power.part(std): average.state_dict() for std, average in game.powers.items()}


def everyones(game: Game, statistics: Statistics) -> Tensors:
    """Of all processes. To be called on every one of them."""
    return {"statistics": statistics.state(), "augment": game.adaptive.state()}


def facts(config: Config, index: Index, accelerator: Accelerator) -> dict[str, Any]:
    """For the manifest: whose checkpoint it is, and what it was made with."""
    data = {"shape": [index.channels, index.height, index.width], "classes": index.classes}
    return {
        "config": config.to_dict(),
        "data": data | {"class_counts": index.class_counts, "path": str(config.data.path), "sha256": index.sha256},
        "started_from": run.started_from(Path(config.run)),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "processes": accelerator.num_processes,
        "versions": {
            "scalegan": __version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
    }


def newest(run_dir: Path) -> str | UserError | None:
    """The folder of the newest valid checkpoint; None for a new run. On process 0, which tells of damaged ones."""
    found, complaints = checkpoint.latest(run_dir)
    if complaints and found is None:
        return UserError(f"{complaints[0]}, and no other is whole: restore one, or give --run another folder")
    for complaint in complaints:
        print(f"scalegan: {complaint}; going on with the one before", file=sys.stderr)
    return str(found.path) if found else None


def load(taken: checkpoint.Checkpoint, game: Game, statistics: Statistics, accelerator: Accelerator) -> None:
    """Put into game and statistics what `tensors` and `everyones` gave. Raises `UserError` for a damaged file."""
    game.bare_generator.load_state_dict(taken.tensors("generator"))
    game.bare_critic.load_state_dict(taken.tensors("critic"))
    game.ema.load_state_dict(taken.tensors("ema"))
    for std, average in game.powers.items():
        average.load_state_dict(taken.tensors(power.part(std)))
    checkpoint.restore_optimizer(game.opt_g.optimizer, taken.tensors("opt_g"))
    checkpoint.restore_optimizer(game.opt_d.optimizer, taken.tensors("opt_d"))
    statistics.restore(taken.tensors("statistics"), accelerator.process_index, accelerator.num_processes)
    game.adaptive.restore(taken.tensors("augment"), accelerator.process_index)
    if accelerator.scaler and taken.state["scaler"]:  # None: it was in another precision until now
        accelerator.scaler.load_state_dict(taken.state["scaler"])
