"""Runs that are killed or told to stop, and go on to the same bytes."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.daily import TODAY, one_a_day
from helpers.launcher import start
from helpers.runs import (
    FULL,
    arguments,
    configured,
    contents,
    disturbed_training,
    newest,
    stopped_training,
    training,
)
from helpers.worlds import run_world

pytestmark = pytest.mark.faults

LONG = 32 * 100


def wait_for(condition):
    limit = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


# --- killed


KILLED = FULL | {
    "model.critic_norm": "spectral",
    "data.reader": "stream",
    "log.checkpoint": 96,
    "log.samples": 128,
    "log.keep": 1,
}


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """The run folder that nobody disturbed, by the number of processes."""
    made = {}

    def run(processes):
        if processes not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            ended = run_world(folder, processes, training, configured(shards, folder / "run", 32 * 14, **KILLED))
            assert [e.value for e in ended] == [True] * processes, ended
            made[processes] = contents(folder / "run")
        return made[processes]

    return run


KILLINGS = [(p, workers, all_) for p in (1, 2, 4) for workers in (0, 2) for all_ in (True, False)]
"""How many processes train, how many workers load for each, and whether all are killed or one; every seed has its turn."""


# One seed a day for those who test often; the name of the test says which.
@pytest.mark.distributed
@pytest.mark.parametrize("seed", [TODAY, *(pytest.param(s, marks=pytest.mark.slow) for s in range(20))])
def test_a_killed_run_goes_on_to_the_same_bytes(shards, tmp_path, undisturbed, seed):
    """The clock goes back to the last checkpoint, and with it metrics.jsonl, losses.csv and all that is random."""
    chance = random.Random(seed)
    processes, workers, all_ = KILLINGS[seed % len(KILLINGS)]
    step, killed = chance.randint(0, 12), None if all_ else chance.randrange(processes)
    config = configured(shards, tmp_path / "run", 32 * 14, **KILLED | {"data.workers": workers})
    ended = run_world(tmp_path, processes, stopped_training, config, killed, signal.SIGKILL, 32 * step)
    assert all(e.exitcode != 0 for e in ended)
    assert all(ended[rank].exitcode == -signal.SIGKILL for rank in (range(processes) if killed is None else [killed]))
    last = 32 * step // 96 * 96  # or the one before, where it was still being written
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdigit()]
    assert max(saved, default=0) in (last, last - 96)
    again = run_world(tmp_path, processes, training, config)
    assert [e.value for e in again] == [True] * processes, again
    ours, theirs = contents(tmp_path / "run"), undisturbed(processes)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


# --- told to stop


def tell(numbers):
    """Send signals to this process and all that it has started, as a batch system does."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    for number in numbers:
        for pid in sorted(family):
            os.kill(pid, number)


def told(config, numbers, workers):
    def disturb():
        assert len(multiprocessing.active_children()) == workers
        tell(numbers)

    return disturbed_training(config, 32 * 5, disturb)


def tellings():
    """Processes, signals to each of them, and how many loader workers each has, started how."""
    numbers = [(signal.SIGCONT, signal.SIGTERM), (signal.SIGUSR1,), (signal.SIGTERM,)]
    for processes, told, loader in itertools.product((2, 1), numbers, [(2, "forkserver"), (2, "fork"), (0, "forkserver")]):
        names = "+".join(number.name for number in told)
        yield pytest.param(processes, told, *loader, id=f"{processes}-{names}-{loader[0]}-{loader[1]}")


@pytest.mark.distributed
@pytest.mark.parametrize(("processes", "numbers", "workers", "start_method"), one_a_day(tellings()))
def test_signals_to_every_process_of_the_step_lose_no_step(
    shards, tmp_path, undisturbed, processes, numbers, workers, start_method
):
    loader = {"data.workers": workers, "data.start_method": start_method}
    config = configured(shards, tmp_path / "run", 32 * 14, **KILLED | loader)
    stopped = run_world(tmp_path, processes, told, config, numbers, workers)
    assert [(e.value, e.exitcode) for e in stopped] == [(False, 0)] * processes, stopped
    at = int((tmp_path / "run" / "requeue").read_text())
    assert at == int(newest(tmp_path / "run").name) == (32 * 6 if processes == 1 else 32 * 7)
    again = run_world(tmp_path, processes, training, config)
    assert [e.value for e in again] == [True] * processes, again
    ours, theirs = contents(tmp_path / "run"), undisturbed(processes)
    assert [name for name in theirs if ours[name] != theirs[name]] == []


# --- told to stop, under a real launcher


LAUNCHED = 32 * 60


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    ended = run_world(folder, 2, training, configured(shards, folder / "run", LAUNCHED, **FULL), True)
    assert [e.value for e in ended] == [True, True], ended
    return folder / "run"


@pytest.mark.distributed
@pytest.mark.parametrize("how", one_a_day(["Ctrl-C", "TERM to the launcher"]))
def test_a_launched_run_that_is_stopped_saves_and_goes_on(shards, tmp_path, unbroken, how):
    argv = arguments(shards, tmp_path / "run", LAUNCHED, **FULL)
    process = start(argv)
    recorded = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: recorded.exists() and recorded.read_bytes().count(b"\n") >= 2)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # a terminal tells the launcher and its processes
    else:
        process.terminate()
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 1, "of the launcher, whatever its processes end with"
    said = re.search(r"stopped at (\d+) images on request, checkpoint saved: run the same command to go on", output)
    assert said, output + errors
    stopped = int(said[1])
    assert stopped < LAUNCHED
    assert int(newest(tmp_path / "run").name) == stopped

    again = start(argv)
    output, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert f"going on at {stopped} images of {LAUNCHED}" in output
    ours, theirs = contents(tmp_path / "run"), contents(unbroken)
    assert [name for name in theirs if name != "evaluations.jsonl" and ours[name] != theirs[name]] == []
    ours, theirs = (json.loads(record["evaluations.jsonl"]) for record in (ours, theirs))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}


# --- Ctrl-C of one process


def test_ctrl_c_of_a_run_on_one_process_saves_and_asks_for_it_again(shards, tmp_path):
    argv = [sys.executable, "-m", "scalegan", "train", *arguments(shards, tmp_path / "run", LONG)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    recorded = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: recorded.exists() and recorded.read_bytes().count(b"\n") >= 2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    said = re.search(r"stopped at (\d+) images on request, checkpoint saved: run the same command to go on", output)
    assert said, output + errors
    assert (tmp_path / "run" / "requeue").read_text() == f"{said[1]}\n"
    assert int(newest(tmp_path / "run").name) == int(said[1]) < LONG
