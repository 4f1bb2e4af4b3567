"""What the benchmarks share: which machine and commit a figure is of, real shards, child processes, the record of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
OUT = REPO / "benchmarks" / "out"
"""Shards, grids and figures that the benchmarks make; git-ignored."""
MEASURED = ("src", "configs", "launch", "benchmarks/*.py")
"""What decides a figure: a change to anything else leaves it as good as it was."""


@dataclass(frozen=True)
class DataSet:
    """Real images, and how shards are made of them."""

    folder: str
    """Below `SCALEGAN_DATA` or ../shared/data."""
    options: tuple[str, ...] = ()
    """Of `scalegan shards`."""


DATA = {
    "kiwi64": DataSet("fruits360", ("--classes", "Kiwi", "--split", "Training", "--size", "64")),
    "kiwi100": DataSet("fruits360", ("--classes", "Kiwi", "--split", "Training")),
    "brain": DataSet("brain", ("--split", "train", "--channels", "1", "--size", "104x88")),
    "fashion": DataSet("fashion-mnist", ("--split", "train")),
    "fruits12": DataSet("fruits360", ("--split", "Training", "--size", "64")),
    "fruits100": DataSet("fruits360", ("--split", "Training")),
    "brain208": DataSet("brain", ("--split", "train", "--channels", "1")),
    "kiwi64-test": DataSet("fruits360", ("--classes", "Kiwi", "--split", "Test", "--size", "64")),
    "kiwi100-test": DataSet("fruits360", ("--classes", "Kiwi", "--split", "Test")),
    "brain-test": DataSet("brain", ("--split", "test", "--channels", "1", "--size", "104x88")),
    "fashion-test": DataSet("fashion-mnist", ("--split", "test")),
    "fruits12-test": DataSet("fruits360", ("--split", "Test", "--size", "64")),
    "fruits100-test": DataSet("fruits360", ("--split", "Test")),
    "brain208-test": DataSet("brain", ("--split", "test", "--channels", "1")),
}


def real_data() -> Path:
    """The folder of real images; ends the program where there is none."""
    root = Path(os.environ.get("SCALEGAN_DATA") or REPO.parent / "shared" / "data")
    if not root.is_dir():
        sys.exit(f"{root} is not there: set SCALEGAN_DATA to a folder that holds fruits360/, brain/ and fashion-mnist/")
    return root


def shards(name: str) -> Path:
    """Shards of one of `DATA`, made when they are missing."""
    out = OUT / "shards" / name
    if not (out / "index.json").is_file():
        data = DATA[name]
        run([*scalegan("shards"), str(real_data() / data.folder), str(out), *data.options])
    return out


def scalegan(command: str) -> list[str]:
    """The start of a command line, by this interpreter, wherever its scripts are."""
    return [sys.executable, "-m", "scalegan", command]


def dtype() -> str:
    """What `train.precision` auto trains in on this CPU."""
    from scalegan.distributed import has_bf16

    return "bfloat16" if has_bf16("cpu") else "float32"


@dataclass(frozen=True)
class Done:
    """A process that has ended well."""

    text: str
    """What it printed to standard output."""
    seconds: float
    memory_mb: float
    """Peak resident memory of the process, or of the largest of its children."""


def run(command: Sequence[str], threads: int | None = None) -> Done:
    """Run a command to its end; ends the program, with what the command said, where it fails."""
    environment = os.environ | {"WANDB_MODE": "offline"}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        with ended_with_us() as started:
            process = subprocess.Popen(command, cwd=REPO, env=environment, stdout=output, stderr=errors, text=True)
            started(process)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        text = output.read()
        if process.returncode:
            sys.exit(f"exit code {process.returncode}: {' '.join(command)}\n{text[-2000:]}{errors.read()[-4000:]}")
    return Done(text, seconds, usage.ru_maxrss / 1024)


@contextmanager
def ended_with_us() -> Iterator[Callable[[subprocess.Popen[str]], None]]:
    """Whoever ends a benchmark, by SIGTERM or Ctrl-C, ends the process that it is waiting for and was told of."""
    running: list[subprocess.Popen[str]] = []
    asked: list[int] = []

    def end(number: int, frame: object) -> None:
        asked.append(number)
        for process in running:
            process.terminate()

    def started(process: subprocess.Popen[str]) -> None:
        running.append(process)
        if asked:  # between its start and here
            process.terminate()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        sys.exit(128 + asked[0])


def child(script: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """Run a benchmark script's `--child` in a fresh process; its last line of output is JSON."""
    done = run([sys.executable, str(REPO / "benchmarks" / script), "--child", *arguments], threads)
    values: dict[str, Any] = json.loads(done.text.splitlines()[-1])
    return values


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def timing(run_dir: Path, images: int) -> list[dict[str, Any]]:
    """The timing of a run that was to see so many images; ends the program where it was stopped before."""
    lines = read_jsonl(run_dir / "timing.jsonl")
    if not lines or lines[-1]["images_seen"] < images:
        sys.exit(f"{run_dir.name}: the training was stopped before its end: start the benchmark again")
    return lines


def speed(lines: list[dict[str, Any]], after: int) -> float:
    """Images per second from the first line of timing at `after` images or later to the last one, all included."""
    first, last = next(line for line in lines if line["images_seen"] >= after), lines[-1]
    return float((last["images_seen"] - first["images_seen"]) / (last["seconds"] - first["seconds"]))


def machine() -> dict[str, Any]:
    """What a figure's table names of where it was taken."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": importlib.metadata.version("torch"),
        "commit": commit(),
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return os.uname().machine


def commit() -> str:
    """Short hash of the last commit to what is measured; with local changes to it, a hash of them after a plus sign."""
    head = git("log", "-1", "--format=%h", "--", *MEASURED).strip() or "no-git"
    changes = git("diff", "HEAD", "--", *MEASURED)
    new = git("ls-files", "--others", "--exclude-standard", "--", *MEASURED).splitlines()
    changes += "".join(name + (REPO / name).read_text(errors="replace") for name in new)
    return f"{head}+{hashlib.sha256(changes.encode()).hexdigest()[:7]}" if changes else head


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True, check=False).stdout


def headline(**more: Any) -> str:
    """One line over a table: the machine, and whatever else the figures depend on."""
    return ", ".join(f"{name} {value}" for name, value in (machine() | more).items())


def verdict(what: str, value: float, limit: float, *, at_least: bool = True) -> bool:
    """Print one figure beside its target; returns whether it is reached."""
    reached = value >= limit if at_least else value < limit
    print(f"{what}: {value:.2f} (target {'>=' if at_least else '<'} {limit:g}): {'reached' if reached else 'MISSED'}")
    return reached


def table(title: str, *columns: str) -> Callable[..., None]:
    """Print the head of a table, whose columns are `name|format`; returns what prints a row of it."""
    parts = [column.split("|") for column in columns]
    print(f"\n{title}", "  ".join(name for name, _ in parts), sep="\n")

    def row(*cells: object) -> None:
        print(*(format(cell, spec).rjust(len(name)) for cell, (name, spec) in zip(cells, parts, strict=True)), sep="  ")

    return row


def seconds(call: Callable[[], Any], times: int = 1) -> float:
    """The median of so many calls."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)
