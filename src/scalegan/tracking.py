"""The record of a run: local files first, then Weights & Biases.

`metrics.jsonl`, `evaluations.jsonl` and `samples.jsonl` hold what a repeat of the run would reproduce, `timing.jsonl` what it
would not,
`losses.csv` the losses of every single step. A resumed run cuts the reproducible files back to its checkpoint and goes on
from there, so that they read as if nothing had happened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from scalegan.config import Config
from scalegan.files import Lines, write_atomically
from scalegan.wandb_run import WandbRun

LOSSES_HEADER = "images_seen,loss/D,loss/G\n"
ROWS = {
    "metrics.jsonl": ("metrics", ""),
    "timing.jsonl": ("timing", "timing/"),
    "evaluations.jsonl": ("evaluation", "evaluation/"),
    "samples.jsonl": ("likeness", "samples/"),
}
"""The files whose lines W&B gets too, each with the kind of its rows and what stands before its keys."""


class Tracker:
    """Writes the record of one run; made on rank 0 only, when the images seen at the start are known.

    Every call fixes its line on disk before W&B is told. What goes wrong in W&B is said once and never stops a training.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        images_seen: int,
        wandb_id: str | None = None,
        *,
        say: Callable[[str], None] = print,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "losses.csv"):
            cut_back(run_dir / name, images_seen)
        cut_back(run_dir / "timing.jsonl", None)
        self._run_dir = run_dir
        self._files: dict[str, Lines] = {}
        self._step_losses = config.log.step_losses
        self._wandb = WandbRun(run_dir, config, images_seen, wandb_id, say)
        self._catch_up()

    @property
    def wandb_id(self) -> str | None:
        """Belongs into every checkpoint, and from there back into the constructor."""
        return self._wandb.id

    def log(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl: values that a repeat of the run would reproduce."""
        self._append("metrics.jsonl", images_seen, metrics)
        self._send("metrics.jsonl", images_seen, metrics)

    def timing(self, images_seen: int, timing: Mapping[str, float]) -> None:
        """One line of timing.jsonl: seconds, throughput, memory."""
        self._append("timing.jsonl", images_seen, timing)
        self._send("timing.jsonl", images_seen, timing)

    def record(self, images_seen: int, record: Mapping[str, Any]) -> None:
        """One evaluation: evaluations.jsonl gets all of it, W&B its numbers as curves."""
        self._append("evaluations.jsonl", images_seen, record)
        self._send("evaluations.jsonl", images_seen, record)

    def likeness(self, images_seen: int, record: Mapping[str, Any]) -> None:
        """One sample grid: how alike its images are, to each other and to training images."""
        self._append("samples.jsonl", images_seen, record)
        self._send("samples.jsonl", images_seen, record)

    def images(self, images_seen: int, path: Path, name: str = "samples") -> None:
        """Show a picture that is already in the run folder on W&B too."""
        self._wandb.log(name, images_seen, {}, image=path)

    def losses(self, steps: Iterable[tuple[int, float, float]]) -> None:
        """Rows (images_seen after the step, loss of D, loss of G) for losses.csv; dropped unless `log.step_losses`."""
        if self._step_losses:
            file = self._open("losses.csv")
            header = LOSSES_HEADER if file.empty else ""
            file.append(header + "".join(f"{seen},{d:.9g},{g:.9g}\n" for seen, d, g in steps))

    def waiting(self) -> list[str]:
        """The files with lines that the disk has no room for, after another try; all others are on it, whatever happens."""
        return [name for name, file in self._files.items() if not file.settle()]

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._wandb.close()

    def _append(self, name: str, images_seen: int, values: Mapping[str, Any]) -> None:
        self._open(name).append(json_line(images_seen, values))

    def _send(self, name: str, images_seen: int, values: Mapping[str, Any]) -> None:
        kind, prefix = ROWS[name]
        numbers = {f"{prefix}{key}": value for key, value in numbers_in(values).items() if key != "images_seen"}
        self._wandb.log(kind, images_seen, numbers)

    def _catch_up(self) -> None:
        """Send what an earlier process wrote here but could not send: W&B was down, or off."""
        for name in ROWS:
            for line in read_lines(self._run_dir / name):
                self._send(name, line["images_seen"], line)

    def _open(self, name: str) -> Lines:
        if name not in self._files:
            self._files[name] = Lines(self._run_dir / name, sync=name != "losses.csv")
        return self._files[name]


def numbers_in(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the values, and of a figure by class one for each class: `fd_lite0_per_class/Kiwi`."""
    flat = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    for name, by_class in values.items():
        if isinstance(by_class, Mapping):
            flat |= {f"{name}/{key}": value for key, value in by_class.items() if isinstance(value, (int, float))}
    return flat


def json_line(images_seen: int, values: Mapping[str, Any]) -> str:
    """`images_seen` first, then the keys in order; strict JSON, so that NaN and infinity become null."""
    rest = {key: plain(values[key]) for key in sorted(values) if key != "images_seen"}
    return json.dumps({"images_seen": images_seen} | rest, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Floats with the nine digits that tell all float32 apart; what JSON has no number for becomes None."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def cut_back(path: Path, images_seen: int | None) -> None:
    """Drop the lines after `images_seen` and those that a crash left torn; None drops only the torn ones."""
    if not path.exists():
        return
    text = path.read_bytes()
    kept = b"".join(line for line in text.splitlines(keepends=True) if _stays(line, path.suffix, images_seen))
    if kept != text:
        write_atomically(path, kept)


def _stays(line: bytes, suffix: str, images_seen: int | None) -> bool:
    if not line.endswith(b"\n"):
        return False
    if suffix == ".csv":
        first = line.split(b",", 1)[0]
        return line.count(b",") == 2 and (not first.isdigit() or images_seen is None or int(first) <= images_seen)
    try:
        seen = json.loads(line)["images_seen"]
    except (ValueError, KeyError, TypeError):
        return False
    return images_seen is None or seen <= images_seen


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file of a run, which may be running: a line that is not whole yet is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if _stays(line, path.suffix, None)]
