"""Checkpoints: a folder of safetensors files and a manifest each. The newest valid one wins; no pickle anywhere.

A checkpoint is written under a temporary name, flushed to disk, and renamed: it is there whole or not at all. The
manifest names the sha256 of every file and of its own content, so that a damaged one is known and the one before it is taken.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scalegan.data.index import content_hash
from scalegan.errors import UserError
from scalegan.files import flush, sha256

MANIFEST = "manifest.json"
CONTENT = {"images_seen", "state", "files"}
"""Of the manifest, beside its checksum."""
CHECKPOINTS, SNAPSHOTS = "checkpoints", "snapshots"
"""Folders of a run: what it goes on from, and the averages that it leaves on its way (see `power`)."""
ASIDE = ".old"
"""Ending of a checkpoint that is being replaced by one of the same name."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    images_seen: int
    state: dict[str, Any]
    """Counters and facts: JSON."""
    files: dict[str, str]
    """sha256 by file name."""

    def tensors(self, name: str, device: str = "cpu") -> dict[str, Tensor]:
        """Tensors of one part, such as `generator`. Raises `UserError` when its file is damaged or there is none."""
        file = f"{name}.safetensors"
        if file not in self.files:
            raise UserError(f"checkpoint {self.path} has no {file}: give another one")
        problem = self.problem(only=file)
        if problem:
            raise UserError(problem)
        try:
            return load_file(self.path / file, device=device)
        except FileNotFoundError:  # deleted by a training while its sha256 was taken
            raise UserError(f"checkpoint {self.path}: {file} is missing") from None
        except SafetensorError as error:
            raise UserError(f"checkpoint {self.path}: {file} is no safetensors file ({error}): it is not read") from None

    def problem(self, only: str | None = None) -> str | None:
        """What is wrong with the files, or None when every sha256 is as the manifest says."""
        for file, expected in self.files.items():
            if only is not None and file != only:
                continue
            path = self.path / file
            if not path.is_file():
                return f"checkpoint {self.path}: {file} is missing"
            if sha256(path) != expected:
                return f"checkpoint {self.path}: {file} is damaged (its sha256 differs from the manifest's)"
        return None


def checkpoints(run_dir: Path) -> Path:
    return run_dir / CHECKPOINTS


def save(
    run_dir: Path,
    images_seen: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    kind: str = CHECKPOINTS,
) -> Path:
    """Write checkpoint `images_seen`; returns its folder. An older one of the same name is replaced. Raises `OSError`."""
    parent = run_dir / kind
    for left_over in parent.glob(".tmp-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    return write(parent / f"{images_seen:09d}", images_seen, tensors, state)


def write(final: Path, images_seen: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """`save` into a folder of any name."""
    parent = final.parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary, aside = parent / f".tmp-{final.name}-{os.getpid()}", parent / f"{final.name}{ASIDE}"
    temporary.mkdir()
    try:
        files = {}
        for name, part in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: value.detach().contiguous() for key, value in part.items()}, path)
            files[path.name] = sha256(path)
            flush(path)
        # As it will be read: what JSON makes of tuples and of keys that are numbers is what the checksum is of.
        content = json.loads(json.dumps({"images_seen": images_seen, "state": state, "files": files}))
        (temporary / MANIFEST).write_text(json.dumps(content | {"sha256": content_hash(content)}, indent=1))
        flush(temporary / MANIFEST)
        flush(temporary)
        if final.exists():  # a folder cannot be replaced in one go: between the two renames the old one counts
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        temporary.rename(final)
        flush(parent)
    except SafetensorError as error:  # its word for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(str(error)) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return final


def read(path: Path) -> Checkpoint:
    """The checkpoint in a folder, its manifest read and its files not yet. Raises `UserError`."""
    try:
        content = json.loads((path / MANIFEST).read_text())
        stated = content.pop("sha256", None)  # which older checkpoints have not
        if content.keys() != CONTENT or stated not in (None, content_hash(content)):
            raise ValueError("it does not match its own checksum")
        found = Checkpoint(path, int(content["images_seen"]), dict(content["state"]), dict(content["files"]))
    except FileNotFoundError:
        raise UserError(f"{path} is no checkpoint: it has no {MANIFEST}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path / MANIFEST} is damaged: {error}") from None
    outside = [file for file in found.files if Path(file).name != file]
    if outside:
        raise UserError(f"{path / MANIFEST} names a file outside its folder, {outside[0]!r}: it is not read")
    return found


def folders(run_dir: Path, kind: str = CHECKPOINTS) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [p for p in (run_dir / kind).glob("[0-9]*") if p.is_dir() and p.name.removesuffix(ASIDE).isdigit()]
    return sorted(found, key=lambda p: (number(p), not p.name.endswith(ASIDE)), reverse=True)


def number(path: Path) -> int:
    """Images seen, from the name of a checkpoint's folder."""
    return int(path.name.removesuffix(ASIDE))


def verified(path: Path) -> Checkpoint:
    """The checkpoint in a folder of a run, with all its files looked at. Raises `UserError` with what is wrong."""
    found = read(path)
    if found.images_seen != number(path):
        raise UserError(f"{path / MANIFEST} is damaged: it tells {found.images_seen} images, and its folder {number(path)}")
    if problem := found.problem():
        raise UserError(problem)
    return found


def latest(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint, and a line for each newer one that is damaged."""
    complaints: list[str] = []
    for path in folders(run_dir):
        try:
            return verified(path), complaints
        except UserError as error:
            complaints.append(str(error))
    return None, complaints


def list_valid(run_dir: Path) -> list[Checkpoint]:
    """Every valid checkpoint, newest first."""
    valid = []
    for path in folders(run_dir):
        with suppress(UserError):
            valid.append(verified(path))
    return valid


def prune(run_dir: Path, newest: int, keep: int, also: Iterable[int]) -> None:
    """Delete all but `newest` (images seen), which the caller has verified, the `keep` - 1 before it, and those of `also`.

    Folders newer than `newest` are damaged ones, else the run would have gone on from them: they take no other's place.
    """
    kept = set(also)
    for path in [p for p in folders(run_dir) if number(p) <= newest][keep:]:
        if number(path) not in kept:
            shutil.rmtree(path)


def cut_snapshots(run_dir: Path, images_seen: int) -> None:
    """Delete those after `images_seen`, where a run goes on: it makes them again."""
    for path in folders(run_dir, SNAPSHOTS):
        if number(path) > images_seen:
            shutil.rmtree(path)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts by parameter number; rates and betas are functions of the clock and not kept."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Moments get the memory layout of their parameter: fused kernels walk through both as they lie in memory."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        parameter = parameters[int(number)]
        # Copies in any case: a view would keep the file mapped, and an NFS server the file after its checkpoint is deleted.
        copy = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else torch.empty_like(value)
        state.setdefault(int(number), {})[name] = copy.copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
