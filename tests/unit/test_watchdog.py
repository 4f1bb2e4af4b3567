"""A process is ended where its own steps stop, whatever its run folder is like, and not where it was stopped from outside."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import sys, time
from pathlib import Path
from scalegan import watchdog
watchdog.GRACE = 0.5
watchdog.Watchdog(0.1, Path(sys.argv[1]), 0).begin(0)
time.sleep(60)
"""


def watched(run: Path) -> subprocess.CompletedProcess[str]:
    """A process that does nothing under a watchdog, until it ends."""
    return subprocess.run([sys.executable, "-c", CODE, str(run)], capture_output=True, text=True, timeout=30)


def test_a_process_without_a_step_ends_and_leaves_its_stacks(tmp_path):
    began = time.monotonic()
    ended = watched(tmp_path / "run")
    assert time.monotonic() - began < 10
    assert ended.returncode == 1
    assert "error: process 0 on " in ended.stderr
    assert "no step in 0.4 s after image 0" in ended.stderr
    assert 'File "<string>", line 7 in <module>' in (tmp_path / "run" / "stacks" / "process0.txt").read_text()


def in_a_file(folder: Path) -> Path:
    (folder / "a_file").touch()
    return folder / "a_file" / "run"


def that_never_answers(folder: Path) -> Path:
    """The file of stacks is a pipe that nobody reads: to open it takes for ever, as on a server that has gone."""
    (folder / "run" / "stacks").mkdir(parents=True)
    os.mkfifo(folder / "run" / "stacks" / "process0.txt")
    return folder / "run"


@pytest.mark.parametrize("made", [in_a_file, that_never_answers])
def test_it_ends_though_its_stacks_cannot_be_written(tmp_path, made):
    ended = watched(made(tmp_path))
    assert ended.returncode == 1
    assert "no step in 0.4 s after image 0" in ended.stderr
    assert 'File "<string>", line 7 in <module>' in ended.stderr


SUSPENDED = """
import os, signal, sys, time
from pathlib import Path
from scalegan.watchdog import Watchdog

watchdog = Watchdog(1.0, Path(sys.argv[1]), 0)
watchdog.begin(0)
watchdog.step(32)
os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(float(sys.argv[2]))
watchdog.step(64)
"""


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="Linux only")
@pytest.mark.parametrize(("step", "hangs"), [(0.5, False), (2.0, True)])
def test_time_in_suspension_is_no_part_of_a_step(tmp_path, step, hangs):
    """Slurm suspends jobs by SIGSTOP where PreemptMode is SUSPEND."""
    process = subprocess.Popen([sys.executable, "-c", SUSPENDED, tmp_path, str(step)], stderr=subprocess.PIPE, text=True)
    while state(process.pid) != "T":
        time.sleep(0.05)
    time.sleep(2.0)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert ("no step in 1 s after image 32" in errors) == hangs
