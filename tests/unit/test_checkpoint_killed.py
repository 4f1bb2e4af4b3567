"""SIGKILL before every system call of a save that touches files: a checkpoint loads, and the next save works and clears up.

From the first byte that is written to the last of the oldest checkpoint that is deleted, in a process of its own each time.
"""

import shutil
from pathlib import Path

import pytest
import torch
from test_checkpoint import STATE, holds, names, tensors

from helpers import system_calls
from scalegan import checkpoint
from scalegan.background import Saver

WHY_NOT = system_calls.missing()
pytestmark = [pytest.mark.faults, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

KEEP = 2


def save(run_dir: Path, images_seen: int, seed: int) -> None:
    """What the thread of a training does: save, verify, prune."""
    saver = Saver(run_dir, KEEP)
    saver._save(images_seen, tensors(seed), STATE, [])
    assert saver.wait() is None


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "there", [[100, 150], pytest.param([100, 200], marks=pytest.mark.slow), pytest.param([], marks=pytest.mark.slow)], ids=str
)
def test_a_save_killed_before_any_system_call(tmp_path, there):
    first = tmp_path / "first"
    for images_seen in there:
        save(first, images_seen, images_seen)
    first.mkdir(exist_ok=True)
    shutil.copytree(first, tmp_path / "undisturbed")
    calls = system_calls.run(lambda: save(tmp_path / "undisturbed", 200, 3))
    assert {"openat", "write", "fsync", "close", "rename"} <= set(calls)
    assert not there or {"unlink", "unlinkat"} & set(calls), "the oldest is deleted"
    assert holds(checkpoint.checkpoints(tmp_path / "undisturbed") / "000000200", 3)
    for number in range(1, len(calls) + 1):
        run_dir = tmp_path / "killed"
        shutil.copytree(first, run_dir)
        assert len(system_calls.run(lambda: save(tmp_path / "killed", 200, 3), killed_before=number)) == number
        found, complaints = checkpoint.latest(run_dir)
        place = f"before call {number}, {calls[number - 1]}"
        assert complaints == [], place
        assert found is not None if there else True, place
        if found is not None:
            assert holds(found.path, 3) or holds(found.path, there[-1]), place
        save(run_dir, 200, 4)
        assert holds(checkpoint.checkpoints(run_dir) / "000000200", 4), place
        assert names(run_dir) == sorted({f"{n:09d}" for n in [*there, 200]})[-KEEP:], place
        shutil.rmtree(run_dir)
