"""`scalegan doctor [RUN]`: what on this machine, or in a run, would stop or slow a training, one line each with the remedy.

Of a run also what its training came to: collapse, a discriminator that overfits or wins, divergence (see `diagnosis`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scalegan import machine
from scalegan.errors import UserError
from scalegan.machine import Finding, fail, ok, warn

TRAINING = "training"
"""Subject of the verdicts on a run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="also look into this run folder")


def run(args: argparse.Namespace) -> int:
    from scalegan.diagnosis import EARLY

    worst, well = 0, "all is well"
    for finding in examine(args.run):
        print(finding, flush=True)
        worst = max(worst, ("ok", "warn", "fail").index(finding.state))
        if finding.subject == TRAINING and finding.text.startswith(EARLY):
            well = "this machine is well; the run cannot be judged yet"
    print((well, "training works; the warnings say what could be better", "mend what failed first")[worst])
    return int(worst == 2)


def examine(run_dir: Path | None) -> Iterator[Finding]:
    """Findings as they are made; the slow ones come last. What cannot even be looked at is a finding too."""
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "packages": packages,
        "device": machine.devices,
        "bf16": machine.bf16,
        "threads": machine.threads,
        "limits": machine.limits,
        "disk": lambda: machine.disk(run_dir or Path()),
        "launch": machine.rendezvous,
        "git": git,
        "extras": extras,
        "weights": weights,
        "wandb": wandb,
        "gloo": machine.gloo,
    }
    if run_dir is not None:
        checks["run"] = lambda: run_folder(run_dir)
        checks["diagnosis"] = lambda: training(run_dir)
    told = set()
    for name, check in checks.items():
        try:
            for finding in check():
                told.add(finding.text)
                yield finding
        except UserError as error:
            if str(error) not in told:  # two checks may read the same damaged file
                yield fail(name, str(error))
        except ModuleNotFoundError as error:
            yield fail(name, f"{error.name} is not installed: install scalegan again")


def packages() -> Iterator[Finding]:
    needs = importlib.metadata.requires("scalegan") or []
    for name in ("torch", "accelerate", "torchmetrics", "webdataset"):
        least = next((m[1] for need in needs if (m := re.match(rf"{name}\W*>=([\d.]+)", need))), "0")
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield fail(name, f"is not installed: pip install '{name}>={least}'")
            continue
        if numbers(version) < numbers(least):
            yield fail(name, f"{version} is older than {least}: pip install -U '{name}>={least}'")
        else:
            yield ok(name, version)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def weights() -> Iterator[Finding]:
    from scalegan.evaluation.weights import LITE0_SHA256, lite0_path, read_checked

    path = lite0_path("")
    read_checked(path, LITE0_SHA256)
    yield ok("weights", f"lite0 (sha256 {LITE0_SHA256[:12]})")


def wandb() -> Iterator[Finding]:
    from scalegan.config import LogConfig
    from scalegan.wandb_run import key_exists, wanted_mode

    mode = wanted_mode(LogConfig())
    if mode == "off":
        yield ok("wandb", "off (WANDB_MODE)")
        return
    import wandb

    has_key = key_exists(wandb.setup(wandb.Settings(silent=True)).settings)
    if has_key and mode != "offline":
        yield ok("wandb", f"{wandb.__version__}, online with an API key")
    elif mode == "online":
        yield warn("wandb", "WANDB_MODE is online without an API key, so runs stay offline: wandb login")
    else:
        yield ok("wandb", f"{wandb.__version__}, offline ({'WANDB_MODE' if has_key else 'no API key; wandb login'})")


def git() -> Iterator[Finding]:
    if shutil.which("git") is None:
        yield warn("git", "was not found: `scalegan fetch fruits360` needs it")
        return
    said = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    version = said.removeprefix("git version ")
    old = numbers(version) < (2, 25)
    yield warn("git", f"{version} is older than 2.25, which `scalegan fetch fruits360` needs") if old else ok("git", version)


def extras() -> Iterator[Finding]:
    for name, what in (("nibabel", "NIfTI"), ("pydicom", "DICOM")):
        if importlib.util.find_spec(name):
            yield ok(name, importlib.metadata.version(name))
        else:
            yield warn(name, f"is not installed, so {what} volumes cannot be read: pip install 'scalegan[medical]'")


def run_folder(folder: Path) -> Iterator[Finding]:
    from scalegan import checkpoint
    from scalegan.data.index import read_index
    from scalegan.run import CONFIG, IDENTITY, record
    from scalegan.settings import read_config
    from scalegan.tracking import read_lines

    if not (folder / CONFIG).is_file() or not (folder / IDENTITY).is_file():
        yield fail("run", f"{folder} is no run folder, it lacks {CONFIG} or {IDENTITY}: give the folder that --run named")
        return
    try:
        began_with = record(folder).get("data")  # first, as without it the run's own command mends nothing either
        data = read_config(folder / CONFIG).data
        index = read_index(data.path, compare=data.fails)
        text = f"{index.samples} images of {index.height}x{index.width} (height x width) in {data.path}"
        if began_with == index.sha256:
            yield ok("data", text)
        else:
            yield fail("data", f"{text}, not those this run began with: restore them, or start another run")
    except UserError as error:
        yield fail("data", str(error))
    found, complaints = checkpoint.latest(folder)
    for complaint in complaints:
        yield warn("checkpoint", f"{complaint}; an older one is taken: delete it")
    if found:
        yield ok("checkpoint", f"{found.images_seen} images seen ({found.path}), files as their sha256 say")
    else:
        yield warn("checkpoint", "none yet: the same train command starts from the beginning")
    lines = read_lines(folder / "metrics.jsonl")
    if not lines:
        yield warn("metrics", "none yet")
        return
    last = {name: value for name, value in lines[-1].items() if isinstance(value, float | int)}
    values = "  ".join(
        f"{name} {last[name]:.4g}" for name in ("loss/D", "loss/G", "accuracy/real", "accuracy/fake") if name in last
    )
    skipped = last.get("skipped_steps", 0)
    text = f"at {lines[-1]['images_seen']} images: {values}"
    yield warn("metrics", f"{text}; {skipped:.0f} steps skipped for non-finite gradients") if skipped else ok("metrics", text)


def training(folder: Path) -> Iterator[Finding]:
    """What the lines of a run say of its training: a verdict, the figures it rests on, and what to try."""
    from scalegan.diagnosis import DIVERGED, EARLY, HEALTHY, diagnose, read_record
    from scalegan.run import CONFIG

    if not (folder / CONFIG).is_file():  # told by `run_folder`
        return
    states = {DIVERGED: "fail", HEALTHY: "ok", EARLY: "ok"}
    for verdict in diagnose(read_record(folder)):
        lines = [f"{verdict.name}: {verdict.meaning}", *(f"- {figures}" for figures in verdict.evidence)]
        if verdict.remedy:
            lines.append(f"try: {verdict.remedy}")
        yield Finding(states.get(verdict.name, "warn"), TRAINING, f"\n{'':19}".join(lines))
