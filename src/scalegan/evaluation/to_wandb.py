"""What W&B gets of `scalegan evaluate RUN`: figures of each comparison as curves of their own, in the run of the training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalegan import checkpoint, settings
from scalegan.evaluation.report import comparison
from scalegan.tracking import numbers_in
from scalegan.wandb_run import EVALUATIONS, WandbRun, wanted_mode


def send(run_dir: Path, records: list[dict[str, Any]], mode: str | None, say: Callable[[str], None]) -> None:
    """The records of one comparison; of what was sent before, no row again. Beside a training, which sends itself, none.

    `mode` stands in for the `log.wandb` that the run was trained with.
    """
    if (run_dir / checkpoint.MANIFEST).is_file():  # a checkpoint that lies by itself, and no run
        return
    found, complaints = checkpoint.latest(run_dir)  # a training may have deleted that of the records meanwhile
    if found is None:
        say(f"W&B gets nothing of this evaluation: {'; '.join(complaints) or f'{run_dir} has no checkpoint any more'}")
        return
    config = settings.config_of(found)
    config = replace(config, log=replace(config.log, wandb=mode or config.log.wandb))  # type: ignore[arg-type]
    if wanted_mode(config.log) == "off":
        return
    with closing(WandbRun(run_dir, config, -1, found.state["wandb_id"], say, kept_in=EVALUATIONS, patience=0)) as wandb:
        for record in records:
            name, seen = f"evaluate/{comparison(record)}", record["images_seen"]
            kind = f"{name}/{seen}"  # each by itself, as older checkpoints may be looked at later
            wandb.log(kind, seen, {f"{name}/{key}": value for key, value in numbers_in(record).items() if key != "images_seen"})
            if "closest_picture" in record:
                picture = run_dir / "evaluations" / record["closest_picture"]
                wandb.log(f"{kind}/closest", seen, {}, image=picture, panel=f"{name}/closest")
