"""The `scalegan` command: finds the subcommand, imports only that one, and turns what a user can fix into one line.

A subcommand is a module with `add_arguments(parser)` and `run(args) -> int`; `train` reads its own command line, because
its options are the fields of `scalegan.config.Config`.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import io
import os
import re
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import scalegan
from scalegan import early
from scalegan.errors import MachineError, UserError


@dataclass(frozen=True)
class Command:
    module: str
    summary: str


COMMANDS = {
    "fetch": Command(
        "scalegan.data.fetch", "download a public data set: classes of Fruits-360, MNIST, Fashion-MNIST, CIFAR-10"
    ),
    "shards": Command("scalegan.data.shards_cli", "turn images or volumes into the shards that training reads"),
    "train": Command("scalegan.train", "train on one process (`accelerate launch -m scalegan.train` for several)"),
    "evaluate": Command("scalegan.evaluation.command", "compare the images of a run, or of a folder, with real ones"),
    "stats": Command("scalegan.evaluation.stats_command", "write statistics of real images, to compare with later"),
    "ema": Command("scalegan.ema_cli", "make an averaged generator of any EMA width from the snapshots of a run"),
    "sample": Command("scalegan.sampling_cli", "make images with the generator of a run"),
    "plot": Command("scalegan.plots", "draw the curves of a run and a GIF of its training"),
    "doctor": Command("scalegan.doctor", "check this machine, and diagnose a run"),
}

GRACE = 3.0
"""Seconds that a process with nothing to say stays: a launcher that sees it end kills the one that is about to speak."""

MENDABLE = {
    errno.ENOSPC: ("the disk is full", "free some space or write to another one"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or write to another disk"),
    errno.EACCES: ("permission denied", "choose a path that you may read and write"),
    errno.EPERM: ("permission denied", "choose a path that you may read and write"),
    errno.EROFS: ("the file system is read-only", "write to another one"),
    errno.ENOTDIR: ("a file stands where a folder should", "choose another path"),
    errno.EEXIST: ("there is such a file already", "choose another path"),
    errno.EISDIR: ("a folder stands where a file should", "choose another path"),
    errno.ENAMETOOLONG: ("the name of a file or folder is too long", "choose a shorter path"),
}


class Parser(argparse.ArgumentParser):
    """Argparse without abbreviations, whose errors are one line that names the nearest option."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: object = None) -> argparse.Namespace:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args)
        if unknown:
            given = unknown[0].split("=")[0]
            near = difflib.get_close_matches(given, self._option_string_actions, n=1)
            self.error(f"unknown argument {given}" + (f": did you mean {near[0]}?" if near else ""))
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: scalegan COMMAND ...",
            "",
            "Train, evaluate and use GANs on image collections.",
            "",
            *lines,
            "",
            "`scalegan COMMAND --help` lists the options of a command; `scalegan --version` prints the version.",
        ]
    )


def with_home(arguments: Sequence[str]) -> list[str]:
    """`--run=~/x` as `--run ~/x`: shells replace a tilde where a word begins, and leave it as it is behind the `=`."""
    pairs = [re.match(r"(--[\w.-]+=)?(~[\w.-]*/.*)", argument, re.DOTALL) for argument in arguments]
    return [f"{m[1] or ''}{os.path.expanduser(m[2])}" if m else a for a, m in zip(arguments, pairs, strict=True)]


def dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = argv[0], list(argv[1:])
    if name in ("-V", "--version"):
        print(f"scalegan {scalegan.__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `scalegan {near[0]}`?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}: {hint}")
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    if name == "train":
        return int(module.main(rest))
    parser = Parser(f"scalegan {name}", command.summary[0].upper() + command.summary[1:] + ".")
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(with_home(rest))))


def complain(message: str, *, machine: bool = False) -> None:
    """One line, from the first process alone where a launcher started several; or from the first of each machine."""
    if os.environ.get("RANK", "0") == "0":
        print(f"scalegan: error: {message}", file=sys.stderr, flush=True)
    elif machine and os.environ.get("LOCAL_RANK") == "0":
        print(f"scalegan: error: machine {os.uname().nodename}: {message}", file=sys.stderr, flush=True)
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(GRACE)


def reader_has_gone() -> bool:
    """Whether nobody reads what we print, as when `scalegan ... | head` has seen enough."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in watched.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains while it flushes at its end
    return gone


def open_streams() -> None:
    """Python has none where a standard stream was closed, as by `>&-`, and the next file that is opened would take its number:
    what code in C prints would go there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (as long as the process)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def forgive_letters() -> None:
    """What standard output has no letter for, as in a locale of Latin-1, is a question mark instead of an error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line. Returns the exit code: 0, 1 where a check of doctor or --debug failed, 2 for what the user
    can mend, 130 after Ctrl-C, 141 where nobody reads what is printed."""
    open_streams()
    forgive_letters()
    if argv is None and sys.argv[1:2] == ["train"]:
        early.remember()
    try:
        return dispatch(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        complain(str(error), machine=isinstance(error, MachineError))
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_has_gone():
            return 141
        if error.errno not in MENDABLE:
            raise
        what, remedy = MENDABLE[error.errno]
        complain(f"{what}{f': {error.filename}' if error.filename else ''}: {remedy}", machine=True)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("scalegan: stopped by Ctrl-C", file=sys.stderr)
        return 130
