"""A process that hangs ends the run, with the stacks of all; what only takes long does not."""

import os
import time

import pytest

from helpers.runs import configured, disturbed_training, error_lines, newest, training
from helpers.worlds import free_port, run_world

pytestmark = pytest.mark.faults

LONG = 32 * 100


def hanging(config, rank, images_seen):
    def asleep_for_ever():
        if int(os.environ.get("RANK", "0")) == rank:
            time.sleep(3600)

    return disturbed_training(config, images_seen, asleep_for_ever)


@pytest.mark.distributed
def test_a_process_that_hangs_ends_the_run_with_the_stacks_of_all(shards, tmp_path):
    config = configured(shards, tmp_path / "run", LONG, train__hang_minutes=0.05, log__checkpoint=64)
    began = time.monotonic()
    ended = run_world(tmp_path, 2, hanging, config, 1, 32 * 5)
    assert time.monotonic() - began < 3 + 5 + 30, "the limit, the grace, and starting"
    assert [e.exitcode for e in ended] == [1, 1]
    for rank, where in enumerate(("all_reduce", "asleep_for_ever")):
        assert "no step in 3 s after image 160" in error_lines(ended[rank].stderr)[0]
        assert where in (tmp_path / "run" / "stacks" / f"process{rank}.txt").read_text()
    assert int(newest(tmp_path / "run").name) == 128


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_first_step_that_hangs_ends_the_run_too(shards, tmp_path, processes):
    config = configured(shards, tmp_path / "run", LONG, train__hang_minutes=0.05)
    began = time.monotonic()
    ended = run_world(tmp_path, processes, hanging, config, processes - 1, 0)
    assert time.monotonic() - began < 4 * 3 + 5 + 30, "four times the limit, the grace, and starting"
    assert [e.exitcode for e in ended] == [1] * processes
    assert all("no step in 12 s after image 0" in error_lines(e.stderr)[0] for e in ended)
    assert "asleep_for_ever" in (tmp_path / "run" / "stacks" / f"process{processes - 1}.txt").read_text()


def hanging_before(config, where):
    """One that does not come to its data: at the index, where the other process never comes, or at the checkpoints."""
    from scalegan import checkpoint, train

    def asleep_for_ever(*_, **__):
        time.sleep(3600)

    if where == "rendezvous":
        world = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": free_port()}
        os.environ |= {name: str(value) for name, value in world.items()} | {"MASTER_ADDR": "127.0.0.1"}
    elif where == "index":
        train.read_index = asleep_for_ever
    else:
        checkpoint.latest = asleep_for_ever
    return training(config)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["rendezvous", "index", "checkpoints"])
def test_what_hangs_before_the_data_is_opened_ends_too(shards, tmp_path, where):
    config = configured(shards, tmp_path / "run", LONG, train__hang_minutes=0.05)
    began = time.monotonic()
    (ended,) = run_world(tmp_path, 1, hanging_before, config, where)
    assert time.monotonic() - began < 4 * 3 + 5 + 30, "four times the limit, the grace, and starting"
    assert ended.exitcode == 1
    assert "no step in 12 s after image 0" in error_lines(ended.stderr)[0]
    stacks = (tmp_path / "run" / "stacks" / "process0.txt").read_text()
    assert ("rendezvous" if where == "rendezvous" else "asleep_for_ever") in stacks


def slow_pictures(config):
    """Of process 0 alone, while the others have nothing to do."""
    from scalegan import outputs

    outputs.Outputs.samples = lambda self, *_: time.sleep(4) if self.main else None
    return training(config)


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.distributed)])
def test_what_takes_long_between_steps_is_no_hang(shards, tmp_path, processes):
    config = configured(shards, tmp_path / "run", 32 * 4, train__hang_minutes=0.05, log__samples=64)
    ended = run_world(tmp_path, processes, slow_pictures, config)
    assert [e.value for e in ended] == [True] * processes, ended
    assert not (tmp_path / "run" / "stacks").exists(), "the end of so short a run comes before the watchdog's"
