"""The record of a run: local files first, then Weights & Biases.

`metrics.jsonl` and `evaluations.jsonl` hold what a repeat of the run would reproduce, `timing.jsonl` what it would not,
`losses.csv` the losses of every single step. A resumed run cuts the reproducible files back to its checkpoint and goes on
from there, so that they read as if nothing had happened. W&B cannot be cut back: what it has got is not sent again.
"""

from __future__ import annotations

import json
import math
import netrc
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from scalegan.config import Config, LogConfig
from scalegan.files import write_atomically

LOSSES_HEADER = "images_seen,loss/D,loss/G\n"
PATIENCE = 30.0
"""Seconds that W&B gets to answer at the start and to finish uploading at the end; a preempted job has little more."""


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
        for name in ("metrics.jsonl", "evaluations.jsonl", "losses.csv"):
            cut_back(run_dir / name, images_seen)
        cut_back(run_dir / "timing.jsonl", None)
        self._run_dir = run_dir
        self._files: dict[str, IO[str]] = {}
        self._step_losses = config.log.step_losses
        self._wandb = WandbRun(run_dir, config, wandb_id, say)

    @property
    def wandb_id(self) -> str | None:
        """Belongs into every checkpoint, and from there back into the constructor."""
        return self._wandb.id

    def log(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl: values that a repeat of the run would reproduce."""
        self._append("metrics.jsonl", images_seen, metrics)
        self._wandb.log("metrics", images_seen, metrics)

    def timing(self, images_seen: int, timing: Mapping[str, float]) -> None:
        """One line of timing.jsonl: seconds, throughput, memory."""
        self._append("timing.jsonl", images_seen, timing)
        self._wandb.log("timing", images_seen, {f"timing/{key}": value for key, value in timing.items()})

    def record(self, images_seen: int, record: Mapping[str, Any]) -> None:
        """One evaluation: evaluations.jsonl gets all of it, W&B its numbers as curves."""
        self._append("evaluations.jsonl", images_seen, record)
        numbers = {f"evaluation/{key}": value for key, value in record.items() if type(value) in (int, float)}
        self._wandb.log("evaluation", images_seen, numbers)

    def images(self, images_seen: int, path: Path, name: str = "samples") -> None:
        """Show a picture that is already in the run folder on W&B too."""
        self._wandb.log(name, images_seen, {}, image=path)

    def losses(self, steps: Iterable[tuple[int, float, float]]) -> None:
        """Rows (images_seen after the step, loss of D, loss of G) for losses.csv; dropped unless `log.step_losses`."""
        if self._step_losses:
            file = self._open("losses.csv")
            if file.tell() == 0:
                file.write(LOSSES_HEADER)
            file.writelines(f"{seen},{d:.9g},{g:.9g}\n" for seen, d, g in steps)
            file.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._wandb.close()

    def _append(self, name: str, images_seen: int, values: Mapping[str, Any]) -> None:
        file = self._open(name)
        file.write(json_line(images_seen, values))
        file.flush()
        os.fsync(file.fileno())

    def _open(self, name: str) -> IO[str]:
        if name not in self._files:
            self._files[name] = open(self._run_dir / name, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)
        return self._files[name]


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


class WandbRun:
    """The run on W&B: one for a whole training, however often it is resumed.

    Steps are never given (W&B throws away a step below its last one); the axis of every curve is `images_seen`, and
    `RUN/wandb.json` keeps, per kind of record, the last `images_seen` that was sent.
    """

    def __init__(self, run_dir: Path, config: Config, wandb_id: str | None, say: Callable[[str], None]) -> None:
        self.id = wandb_id
        self._run: Any = None
        self._say = say
        self._path = run_dir / "wandb.json"
        self._sent: dict[str, int] = {}
        asked = wanted_mode(config.log)
        if asked == "off":
            return
        kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        if kept and wandb_id in (None, kept["id"]):
            self.id, self._sent = kept["id"], kept["sent"]
        known = self.id is not None
        self.id = self.id or secrets.token_hex(4)
        with self._guarded("W&B does not start"):
            self._start(run_dir, config, asked, known)

    def _start(self, run_dir: Path, config: Config, asked: str, known: bool) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", init_timeout=PATIENCE, finish_timeout=PATIENCE, finish_timeout_raises=True
        )
        common: dict[str, Any] = {"id": self.id, "resume": "allow", "dir": str(run_dir), "project": config.log.project}
        # Only the first time: a name that was changed on the site since then stays.
        common |= {"name": None if known else run_dir.resolve().name, "config": config.to_dict(), "settings": settings}
        common["allow_val_change"] = True
        has_key = key_exists(wandb.setup(settings).settings)
        if asked == "online" and not has_key:
            self._say("W&B: no API key (WANDB_API_KEY or `wandb login`), so the run is kept offline in the run folder")
        if has_key and asked != "offline":
            try:
                self._run = wandb.init(mode="online", **common)
            except Exception as error:
                self._say(
                    f"W&B: no connection ({one_line(error)}); kept offline, to upload later: wandb sync {run_dir / 'wandb'}"
                )
        if self._run is None:
            self._run = wandb.init(mode="offline", **common)
        self._run.define_metric("images_seen", hidden=True)
        self._run.define_metric("*", step_metric="images_seen")

    def log(self, kind: str, images_seen: int, values: Mapping[str, Any], image: Path | None = None) -> None:
        """Send one row, and with it a picture under the name of its kind; not again what an earlier process has sent."""
        if self._run is None or images_seen <= self._sent.get(kind, -1):
            return
        with self._guarded("W&B failed"):
            if image:
                import wandb

                values = {kind: wandb.Image(str(image), caption=f"{images_seen / 1000:.1f} kimg"), **values}
            self._run.log({"images_seen": images_seen, **values})
        if self._run is not None:
            self._sent[kind] = images_seen
            write_atomically(self._path, json.dumps({"id": self.id, "sent": self._sent}, sort_keys=True).encode())

    def close(self) -> None:
        if self._run is not None:
            folder = Path(self._run.dir).parent
            with self._guarded(f"W&B has not got everything; to upload the rest: wandb sync {folder}"):
                self._run.finish()
            self._run = None

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        # W&B raises its own errors, protobuf's, socket's and plain ones; none of them is worth a training.
        try:
            yield
        except Exception as error:
            self._run = None
            self._say(f"{what} ({one_line(error)}); training goes on, metrics.jsonl has it all")


def wanted_mode(log: LogConfig) -> str:
    """`auto` also listens to WANDB_MODE, as people set it for a whole cluster."""
    mode = os.environ.get("WANDB_MODE", "auto") if log.wandb == "auto" else log.wandb
    return {"disabled": "off", "dryrun": "offline", "run": "online"}.get(mode, mode)


def key_exists(settings: Any) -> bool:
    """Whether W&B would find a key where it looks for one: environment, settings file, netrc. Asks no server."""
    if settings.api_key or settings.identity_token_file:
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        entry = netrc.netrc(path).authenticators(urlsplit(settings.base_url).netloc)
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(entry and entry[2])


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
