"""The run folder: what identifies a run, who may write to it, and where its parts lie."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import yaml

from scalegan import __version__
from scalegan.config import Config
from scalegan.errors import UserError
from scalegan.files import write_atomically

IDENTITY = "run.json"
LOCK = ".lock"
MAY_CHANGE = (
    "data.on_error",
    "loss.",
    "augment.",
    "optim.",
    "ema.half_life",
    "ema.ramp",
    "burn_in.",
    "train.images",
    "train.accumulate",
    "train.precision",
)
"""What --override_resume lets another value in for; all else decides what a checkpoint holds, or in which order images come."""
CONFIG = "config.yaml"
LOOK = 1.0
"""Seconds within which who looks for a writer (`refuse_second_writer`) lets go again."""


def flatten(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`name: old -> new` of every field that differs."""
    old, new = flatten(before), flatten(now)
    names = sorted(old.keys() | new.keys())
    return [f"{n}: {old.get(n)} -> {new.get(n)}" for n in names if old.get(n) != new.get(n)]


class Held(UserError):
    """Another process holds a lock."""

    def __init__(self, run_dir: Path, owner: str) -> None:
        self.owner = owner.strip() or "another process"
        super().__init__(f"run folder {run_dir} is being written by {self.owner}: stop it, or give --run another folder")


class Lock:
    """The run folder, held for writing by this process until `close` or its end. Raises `Held` when another holds it."""

    def __init__(self, run_dir: Path, name: str = LOCK) -> None:
        """`name` of the file that is locked: another is of something else in that folder."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file = (run_dir / name).open("a+")
        # A loader worker that was forked, and outlives a killed training for some seconds, does not hold the folder.
        os.register_at_fork(after_in_child=self._file.close)
        try:
            take(self._file)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read()
            self._file.close()
            raise Held(run_dir, owner) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            if name == LOCK:
                print(f"scalegan: {run_dir} is on a file system without locks: see that one training at a time writes there")
        self._file.seek(0)
        left = self._file.read().strip()  # by who was killed; or who still writes, on a file system without locks between hosts
        if name == LOCK and left and f" on {os.uname().nodename} " not in left:
            print(f"scalegan: {run_dir} was last written by {left}, which did not say that it ended: see that it did")
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename} since {time.strftime('%F %T')}\n")
        self._file.flush()

    def close(self) -> None:
        if not self._file.closed:
            self._file.truncate(0)
        self._file.close()


def refuse_file(run_dir: Path) -> None:
    """Raises `UserError` where a file lies in the place of the run folder, or of one that it is in; and for a name that is no
    UTF-8, under which safetensors finds nothing."""
    if str(run_dir).encode(errors="replace") != os.fsencode(run_dir):
        raise UserError(
            f"--run {os.fsencode(run_dir).decode(errors='replace')} has letters that are no UTF-8: rename the folder"
        )
    for path in (run_dir, *run_dir.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"--run {path} is a file: give a folder")


def take(file: TextIO) -> None:
    """Lock a file for one alone. Raises `BlockingIOError` where another holds it for longer than a look, and `OSError`."""
    end = time.monotonic() + LOOK
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def refuse_second_writer(run_dir: Path) -> None:
    """Raises `Held` where another process holds the folder: long before `Lock` would, which waits for all of the run."""
    if not (run_dir / LOCK).is_file():
        return
    with (run_dir / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, as the processes of one run look at the same time
        except BlockingIOError:
            raise Held(run_dir, file.read()) from None
        except OSError:  # a file system without locks, or one for writers alone: `Lock` says so
            return


def check(run_dir: Path, config: Config, data_sha256: str) -> list[str]:
    """Changes against the run in the folder that `override_resume` lets pass. Writes nothing.

    Raises `UserError` with the difference where the folder is the run of another configuration.
    """
    # A field that is newer than the run was then what it is by default now.
    before = flatten(_identity(Config(), data_sha256)) | flatten(_before(run_dir))
    changed = [name.removeprefix("config.") for name in differences(before, _identity(config, data_sha256))]
    if not begun(run_dir) or not changed:
        return []
    fixed = [name for name in changed if not name.startswith(MAY_CHANGE)]
    if config.override_resume and not fixed:
        return changed
    shown = fixed if config.override_resume else changed
    advice = "undo that, or give --run another folder"
    if not fixed:
        advice += ", or go on all the same with --override_resume"
    raise UserError(f"run folder {run_dir} has another configuration ({'; '.join(shown)}): {advice}")


def claim(run_dir: Path, config: Config, data_sha256: str, start: dict[str, Any] | None = None) -> None:
    """Write who this run is, unless it is another one (see `check`); what was overridden stays on record.

    `start` is what a new run starts from (see `start.find`).
    """
    changed = check(run_dir, config, data_sha256)
    path = run_dir / IDENTITY
    overridden = json.loads(path.read_text()).get("overridden", []) if path.is_file() else []
    if changed:
        checkpoints = _checkpoints(run_dir)
        overridden.append({"after_checkpoint": checkpoints[-1].name if checkpoints else None, "changes": changed})
    identity = _identity(config, data_sha256) | {"overridden": overridden, "scalegan": __version__}
    if origin := start or started_from(run_dir):
        identity["started_from"] = origin
    write_atomically(path, json.dumps(identity, indent=1).encode())
    write_atomically(run_dir / CONFIG, config_text(config).encode())


def release(run_dir: Path) -> None:
    """Take back what `claim` wrote of a run that has ended before anything came of it: its settings may be what was wrong."""
    lines = run_dir / "metrics.jsonl"
    if not _checkpoints(run_dir) and not (lines.is_file() and lines.stat().st_size):
        for name in (IDENTITY, CONFIG):
            (run_dir / name).unlink(missing_ok=True)


def begun(run_dir: Path) -> bool:
    """Whether there is a run in the folder."""
    return bool(record(run_dir))


def recorded_precision(run_dir: Path) -> str | None:
    """The `train.precision` that the run in the folder began with; None for a new one."""
    before = _before(run_dir)
    return before["config"]["train"]["precision"] if before else None


def started_from(run_dir: Path) -> dict[str, Any] | None:
    """What the networks of the run in the folder began with; None where that was nothing, and for a new run."""
    return record(run_dir).get("started_from")


def _before(run_dir: Path) -> dict[str, Any]:
    return {name: value for name, value in record(run_dir).items() if name in ("config", "data")}


def record(run_dir: Path) -> dict[str, Any]:
    """What run.json says; empty for a new run. Raises `UserError`."""
    path = run_dir / IDENTITY
    if not path.is_file():
        return _by_checkpoint(run_dir)
    try:
        return dict(json.loads(path.read_text()).items())
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged: restore it, or give --run another folder") from None


def _by_checkpoint(run_dir: Path) -> dict[str, Any]:
    """What run.json would say, by the newest checkpoint that tells, where that file was lost; empty for a new run."""
    from scalegan.settings import to_config  # which itself needs this module

    for folder in reversed(_checkpoints(run_dir)):
        with suppress(OSError, ValueError, KeyError, TypeError, UserError):
            state = json.loads((folder / "manifest.json").read_text())["state"]
            identity = _identity(to_config(state["config"]), state["data"]["sha256"])
            return identity | {"started_from": state["started_from"]}
    return {}


def _checkpoints(run_dir: Path) -> list[Path]:
    """Their folders, oldest first; without torch, which `checkpoint` needs."""
    return sorted((run_dir / "checkpoints").glob("[0-9]*"), key=lambda folder: folder.name.rjust(20, "0"))


def _identity(config: Config, data_sha256: str) -> dict[str, Any]:
    return {"config": config.identity(), "data": data_sha256}


def config_text(config: Config) -> str:
    """The resolved configuration as YAML."""
    fields = {name: value for name, value in config.to_dict().items() if name != "override_resume"}
    return yaml.safe_dump(plain(fields), sort_keys=False)


def plain(value: Any) -> Any:
    """Tuples as lists, so that YAML needs no tags."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
