"""A process whose steps have stopped ends, whatever its run folder is like."""

import os
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
