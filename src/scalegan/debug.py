"""`--debug`: the same configuration cut down to a minute, so that every part of a run is tried before the long one starts.

Part by part first, each checked for itself; then whole runs: one unbroken, one that is told to stop half-way and goes on,
which must end with the same bytes. Anomaly detection is on throughout.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scalegan import launcher, own, run
from scalegan.config import Config
from scalegan.data.index import read_index
from scalegan.distributed import check_device, settle_precision
from scalegan.errors import UserError
from scalegan.train import check_data
from scalegan.trial import Fault, Part, Trial


@dataclass(frozen=True)
class Outcome:
    name: str
    result: str
    """passed, failed or not tried."""
    seconds: float
    seen: str


def debug(config: Config) -> int:
    """Try every part of a run; prints a table and returns the exit code, 0 where all passed. Raises `UserError`."""
    if any((launcher.number(name) or 1) > 1 for name in ("WORLD_SIZE", *launcher.OF_MPI)):
        raise UserError("--debug tries one process alone: start it as `scalegan train ... --debug`, without the launcher")
    run.refuse_file(Path(config.run))
    config.check(1)
    check_data(config, read_index(config.data.path, compare=config.data.fails))
    own.check(config)
    check_device(config.train)
    parent = Path(f"{Path(config.run)}-debug")
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="try-", dir=parent))
    console = Console(file=sys.stdout)
    began = time.perf_counter()
    failed = True
    try:
        with closing(Trial(settle_precision(config), folder)) as trial:
            outcomes = try_all(trial.parts(), folder / "log.txt", console)
        show(outcomes, config.run, console)
        faults = [outcome for outcome in outcomes if outcome.result == "failed"]
        failed = bool(faults)
        for fault in faults:
            print(f"failed: {fault.name}: {fault.seen}")
        passed = sum(outcome.result == "passed" for outcome in outcomes)
        tail = f"; what was printed, and the tracebacks: {folder / 'log.txt'}" if failed else ""
        print(f"{passed} of {len(outcomes)} parts passed in {time.perf_counter() - began:.0f} s{tail}")
    finally:
        if not failed:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # another try may be running in it
                parent.rmdir()
    return int(failed)


def try_all(parts: list[Part], log: Path, console: Console) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for part in parts:
        lost = [o.name for o in outcomes if o.name in part.needs and o.result != "passed"]
        if lost:
            outcomes.append(Outcome(part.name, "not tried", 0.0, f"needs {lost[0]}"))
            continue
        began = time.perf_counter()
        result = "passed"
        with console.status(part.name), open(log, "a", encoding="utf-8") as file:
            try:
                with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                    seen = part.attempt()
            except Exception as error:
                traceback.print_exc(file=file)
                result, seen = "failed", one_line(error)
        outcomes.append(Outcome(part.name, result, time.perf_counter() - began, seen))
    return outcomes


def show(outcomes: list[Outcome], run: str, console: Console) -> None:
    table = Table(title=escape(f"parts of {run}, cut down"), title_justify="left")
    table.add_column("part", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("s", justify="right")
    table.add_column("seen", overflow="fold")
    colours = {"passed": "green", "failed": "red", "not tried": "yellow"}
    for outcome in outcomes:
        result = f"[{colours[outcome.result]}]{outcome.result}[/]"
        table.add_row(outcome.name, result, f"{outcome.seconds:.1f}", escape(shortened(outcome.seen)))
    console.print(table, highlight=False)


def shortened(text: str) -> str:
    """For the table; the whole error follows it."""
    return text if len(text) <= 100 else f"{text[:99]}…"


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | Fault) else f"{type(error).__name__}: {text}"
