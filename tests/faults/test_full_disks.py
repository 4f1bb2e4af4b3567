"""A disk that is full when a run wants to save."""

import contextlib
import os
import re
import subprocess

import pytest

from helpers.daily import one_a_day
from helpers.runs import configured, contents, newest, training
from helpers.worlds import run_world

pytestmark = pytest.mark.faults


def on_a_small_disk(config, folder):
    """Training on a real file system, which process 0 fills, and later frees; returns what was said."""
    from scalegan import outputs
    from scalegan.steps import Game

    said, say = [], outputs.Outputs.say
    outputs.Outputs.say = lambda self, text: (said.append(text), say(self, text))

    step = Game.generator_step
    hog, first = folder / "hog", os.environ.get("RANK", "0") == "0"

    def generator_step(self, reals, seen):
        if first and seen == 32 * 4:
            with contextlib.suppress(OSError), hog.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        if first and seen == 32 * 9:
            hog.unlink()
        return step(self, reals, seen)

    Game.generator_step = generator_step
    assert training(config)
    return said


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.distributed
@pytest.mark.parametrize("processes", one_a_day([1, 2]))
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(shards, tmp_path, small_disk, processes):
    often = {"log__checkpoint": 96, "log__every": 32, "log__samples": 224, "log__step_losses": True}
    config = configured(shards, small_disk / "run", 32 * 14, **often)
    ended = run_world(tmp_path, processes, on_a_small_disk, config, small_disk)
    assert [e.exitcode for e in ended] == [0] * processes, ended
    said = ended[0].value
    lost = [line for line in said if "NOT saved" in line]
    # The second would have been of a run whose lines are not all in their files.
    reasons = r"checkpoint at (\d+) images was NOT saved: (.*No space left|the disk has no room for lines of .*samples.jsonl)"
    assert [re.match(reasons, line)[1] for line in lost] == ["192", "288"]
    assert [line for line in said if line.startswith("samples at 224 images were NOT written: No space left")]
    assert int(newest(small_disk / "run").name) == 32 * 14
    reference = configured(shards, tmp_path / "reference", 32 * 14, **often)
    run_world(tmp_path, processes, training, reference)
    ours, theirs = contents(small_disk / "run"), contents(tmp_path / "reference")
    assert {"metrics.jsonl", "losses.csv", "samples.jsonl"} <= ours.keys()
    assert [name for name in theirs if ours.get(name) != theirs[name]] == ["000000224.png"]
