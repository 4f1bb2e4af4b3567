"""The run folder: what identifies a run, who may write to it, and where its parts lie."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import yaml

from scalegan import __version__
from scalegan.config import Config
from scalegan.errors import UserError

IDENTITY = "run.json"
CONFIG = "config.yaml"


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


class Lock:
    """The run folder, held for writing by this process until `close` or its end. Raises `UserError` when another holds it."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file = (run_dir / ".lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(
                f"run folder {run_dir} is being written by {owner}: stop it, or give --run another folder"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def claim(run_dir: Path, config: Config, data_sha256: str) -> None:
    """Write who this run is, or check that it is still the same one. Raises `UserError` with the difference."""
    identity = {"config": config.identity(), "data": data_sha256}
    path = run_dir / IDENTITY
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path} is damaged: restore it, or give --run another folder") from None
        changed = differences({"config": before["config"], "data": before["data"]}, identity)
        if changed:
            shown = "; ".join(name.removeprefix("config.") for name in changed)
            raise UserError(
                f"run folder {run_dir} has another configuration ({shown}): undo that, or give --run another folder"
            )
    write_text(path, json.dumps(identity | {"scalegan": __version__}, indent=1))
    write_text(run_dir / CONFIG, yaml.safe_dump(plain(config.to_dict()), sort_keys=False))


def plain(value: Any) -> Any:
    """Tuples as lists, so that YAML needs no tags."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def write_text(path: Path, text: str) -> None:
    """Replace a file whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
