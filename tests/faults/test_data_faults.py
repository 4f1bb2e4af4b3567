"""Damaged shards under a real training: named, left out within one budget for all processes, and never another's label."""

import json
import os
import re
import signal
import time
from itertools import chain, product

import numpy as np
import pytest

from helpers import numbered
from helpers.daily import one_a_day
from helpers.numbered import watched
from helpers.runs import arguments, command, configured, error_lines, newest, stopped_training, training
from helpers.worlds import run_world
from scalegan import settings
from scalegan.config import DataConfig
from scalegan.data.index import read_index, read_offsets
from scalegan.probe import MOST, fixed

pytestmark = pytest.mark.faults

SAMPLES = 160
READERS = {"resident": {"data__reader": "resident"}, "workers": {"data__reader": "stream", "data__workers": 2}}
SKIP = {"data__on_error": "skip", "data__skip_budget": 0.3}


def make(folder, bad=(), first=0):
    """Ten shards; the images `bad` are no images."""
    return numbered.make(folder, SAMPLES, 16, bad, first)


def damage(folder, kind):
    """Spoil the third shard; images 32 to 47 are in it."""
    index = read_index(folder)
    path = folder / index.shards[2].name
    offsets = read_offsets(index, 2)
    if kind == "missing":
        path.unlink()
    elif kind == "cut between members":
        os.truncate(path, int(offsets[8, 0]) - 512)
    elif kind == "cut inside a member":
        os.truncate(path, int(offsets[8, 0]) + 40)
    else:
        content = bytearray(path.read_bytes())
        content[int(offsets[8, 0]) + 40] ^= 0x10
        path.write_bytes(content)
    return path.name


KINDS = ("missing", "cut between members", "cut inside a member", "a byte flipped")


def global_batches(ended):
    return [list(chain(*parts)) for parts in zip(*(e.value for e in ended), strict=True)]


@pytest.mark.distributed
@pytest.mark.parametrize(("kind", "processes"), one_a_day(product(KINDS, (1, 2))))
def test_a_damaged_shard_stops_the_run_with_its_name(tmp_path, kind, processes):
    make(tmp_path / "shards")
    name = damage(tmp_path / "shards", kind)
    argv = arguments(tmp_path / "shards", tmp_path / "run", 32 * 20, **READERS["workers"])
    began = time.monotonic()
    ended = run_world(tmp_path, processes, command, argv)
    assert time.monotonic() - began < 60, "and does not wait for its loader for ever"
    assert all(e.exitcode or e.value for e in ended), "each process ends with an error"
    said = [line for e in ended for line in error_lines(e.stderr)]
    assert said
    assert all(name in line for line in said if "process" not in line)
    assert any(name in line for line in said)
    place = {"missing": "cannot be opened", "cut between members": "(first damaged: image 9 of 16, after key '000000039')"}
    wanted = place.get(kind, "(first damaged: image 9 of 16, key '000000040')")
    assert all(wanted in line for line in said if "process" not in line), said
    assert not any("Traceback" in e.stderr for e in ended), "neither where it was met nor where it was not"


@pytest.mark.parametrize("reader", READERS)
def test_a_run_whose_shard_is_damaged_on_the_way_goes_on_without_it_by_the_options_told(tmp_path, reader):
    make(tmp_path / "shards")
    before = configured(tmp_path / "shards", tmp_path / "run", 64, **READERS[reader])
    (ended,) = run_world(tmp_path, 1, training, before)
    assert ended.value is True, ended
    damage(tmp_path / "shards", KINDS[3])
    argv = arguments(tmp_path / "shards", tmp_path / "run", 320, **READERS[reader])
    (ended,) = run_world(tmp_path, 1, command, argv)
    (line,) = error_lines(ended.stderr)
    advice = re.search(r"or train without such images, (--.*)$", line)
    config = settings.parse([*argv, *advice[1].split(), "--data.skip_budget=0.3"]).config
    (ended,) = run_world(tmp_path, 1, training, config)
    assert ended.value is True, ended


@pytest.mark.distributed
def test_a_held_out_image_that_one_process_alone_reads_is_told_once_by_its_name(tmp_path):
    index = make(tmp_path / "shards")
    bad = int(fixed(np.arange(16, 32), index, MOST, DataConfig())[0])  # of the first pass, which has 32, process 1's first
    make(tmp_path / "held_out", (bad,), first=1000)  # others than those that are trained on
    argv = arguments(tmp_path / "shards", tmp_path / "run", 320, data__held_out=tmp_path / "held_out")
    ended = run_world(tmp_path, 2, command, argv)
    assert [e.value for e in ended] == [2, 2], ended
    (line,) = [line for e in ended for line in error_lines(e.stderr)]
    assert line.startswith("scalegan: error: process 1: ")
    assert f"{bad:09d}" in line


@pytest.mark.distributed
@pytest.mark.parametrize(("kind", "reader", "order"), one_a_day(product(KINDS, READERS, ("full", "blocks"))))
def test_skipping_a_damaged_shard_is_the_same_on_any_number_of_processes(tmp_path, kind, reader, order):
    make(tmp_path / "shards")
    damage(tmp_path / "shards", kind)
    changes = SKIP | READERS[reader] | {"data__order": order}
    if order == "blocks":
        changes |= {"data__streams": 4, "data__window": 64}
    found = {}
    for processes in (1, 2):
        config = configured(tmp_path / "shards", tmp_path / f"run{processes}", 32 * 12, **changes)
        ended = run_world(tmp_path, processes, watched, config)
        assert all(e.exitcode == 0 for e in ended), ended
        found[processes] = global_batches(ended)
    assert found[1] == found[2]
    assert {len(batch) for batch in found[1]} == {32}
    seen = {number for batch in found[1] for number in batch}
    assert seen == set(range(SAMPLES)) - set(range(32, 48))


@pytest.mark.distributed
def test_the_budget_is_one_for_all_processes(tmp_path):
    """Each of two processes comes across fewer bad images than it allows; together they are too many."""
    bad = range(0, 160, 10)
    make(tmp_path / "shards", bad)
    changes = {"data__reader": "stream", "data__on_error": "skip", "data__skip_budget": 15 / 160}
    argv = arguments(tmp_path / "shards", tmp_path / "run", 32 * 40, **changes | {"log__every": 160, "train__batch": 32})
    ended = run_world(tmp_path, 2, command, argv)
    assert [e.value for e in ended] == [2, 2], ended
    (line,) = error_lines(ended[0].stderr)
    assert re.search(
        r"16 of 160 images cannot be read, more than data.skip_budget 0.09375 allows; the last: image \d+.png", line
    )
    told = [re.findall(r"left out: image (\d+).png", e.stderr) for e in ended]
    assert all(0 < len(set(own)) < len(bad) for own in told), "each has met only some of them"
    assert {int(number) for own in told for number in own} == set(bad)


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.distributed)])
def test_the_budget_is_one_for_all_starts(tmp_path, processes):
    """Neither start comes across more bad images than it allows: they see three of the five batches of an epoch each."""
    make(tmp_path / "shards", range(0, 160, 10))
    changes = {"data__reader": "stream", "data__on_error": "skip", "data__skip_budget": 15 / 160, "log__every": 10_000}
    config = configured(tmp_path / "shards", tmp_path / "run", 32 * 6, **changes)
    stopped = run_world(tmp_path, processes, stopped_training, config, None, signal.SIGTERM, 32 * 2)
    assert [e.value for e in stopped] == [False] * processes, stopped
    state = json.loads((newest(tmp_path / "run") / "manifest.json").read_text())["state"]
    assert 0 < len(state["left_out"]) < 16
    assert set(state["left_out"]) <= set(range(0, 160, 10))
    again = run_world(tmp_path, processes, training, config)
    assert all(type(e.value).__name__ == "UserError" for e in again), again
    told = "16 of 160 images cannot be read, more than data.skip_budget 0.09375 allows"
    assert any(told in str(e.value) for e in again), "the process that meets the last one may stop first"
    more = configured(tmp_path / "shards", tmp_path / "run", 32 * 6, **changes | {"data__skip_budget": 0.2})
    assert [e.value for e in run_world(tmp_path, processes, training, more)] == [True] * processes
