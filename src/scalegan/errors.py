"""The one exception a user is meant to see: a sentence that says what, where and what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OURS = f"{Path(__file__).parent}/"
BETWEEN = {"torch", "importlib"}
"""Folders of what calls code of a user's own on our behalf, or is called by it."""


class UserError(Exception):
    """Bad input, worded for the person who gave it. The command line prints it as one line and exits with code 2."""


class MachineError(UserError):
    """What only one machine of a run may see, such as a file or a GPU that is not there: told by the first process of each."""


@contextmanager
def on_this_machine() -> Iterator[None]:
    """Around looking at files: another machine of the run may find others in their places, so each tells of its own."""
    try:
        yield
    except UserError as error:
        raise MachineError(str(error)) from None


@contextmanager
def own_code(what: str, advice: str) -> Iterator[None]:
    """Around code of the user's own: what it raises becomes one line, with the last of its own lines that led there."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [f for f in frames if not f.filename.startswith((OURS, "<")) and not BETWEEN & {*Path(f.filename).parts}]
        place = f" at {theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""
        reason = " ".join(str(error).split())
        raise UserError(f"{what} raised {type(error).__name__}{place} ({reason}): {advice}") from error


class GivenUp(UserError):
    """An evaluation that was given up, as a notice to stop came: it is made again when the run goes on."""


def full_gpu(error: Exception) -> str:
    """What to do where torch found no room on the GPU."""
    return (
        "the GPU has no memory left: raise train.accumulate (a begun run takes it with --override_resume) or lower "
        "evaluation.batch (`scalegan evaluate`: --batch), in a new run also train.batch or the widths of the networks: "
        + " ".join(str(error).split())
    )


def require(condition: bool, message: str) -> None:
    """A check at the border: of what a user has given."""
    if not condition:
        raise UserError(message)


def sought(path: str | Path) -> str:
    """A path that leads nowhere, with the folder that it was looked for in where it is relative."""
    return str(path) if Path(path).is_absolute() else f"{path} (in {Path.cwd()})"
