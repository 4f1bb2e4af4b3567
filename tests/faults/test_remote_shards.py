"""Shards that lie far away, on real servers: the same training as from a disk, few bytes, and faults of the network told."""

import json
import re
import shutil
import time
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

import numpy as np
import pytest

from helpers import numbered
from helpers.daily import one_a_day
from helpers.runs import arguments, configured, contents, error_lines, training
from helpers.servers import WATCHED, Machines, Nginx, halving, nginx_is_here, s3
from helpers.shards import make_shards
from helpers.worlds import run_world
from scalegan.config import DataConfig
from scalegan.data.index import locate, read_index
from scalegan.data.order import make_order, on_layout, samples_at, shards_ahead, substitutes

pytestmark = [pytest.mark.faults, pytest.mark.distributed]

SAMPLES, STREAMS = 840, 4
BLOCKS = {"data.order": "blocks", "data.streams": STREAMS, "data.window": 64, "data.reader": "stream", "data.workers": 1}
BATCH, IMAGES = 32, 32 * 10  # less than half an epoch, so that nothing of the next is fetched ahead


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Twelve shards."""
    folder = tmp_path_factory.mktemp("remote") / "shards"
    make_shards(folder, SAMPLES)
    return folder


@pytest.fixture(scope="module")
def from_disk(shards, tmp_path_factory):
    """What a training leaves that reads the same shards where they lie, by the number of machines."""
    made = {}

    def run(machines):
        if machines not in made:
            folder = tmp_path_factory.mktemp("disk")
            ended = run_world(folder, machines, training, configured(shards, folder / "run", IMAGES, **BLOCKS))
            assert [e.value for e in ended] == [True] * machines, ended
            made[machines] = contents(folder / "run")
        return made[machines]

    return run


@pytest.fixture
def nginx(shards, tmp_path):
    if not nginx_is_here():
        pytest.skip("needs nginx and openssl (Debian: apt install nginx-light openssl)")
    return Nginx(shards, tmp_path / "nginx")


def differing(run, expected):
    found = contents(run)
    assert found.keys() == expected.keys()
    return [name for name in expected if found[name] != expected[name]]


def shards_of(folder, rank):
    """The shards that the streams of one of two processes lie in, in the first epoch."""
    index = read_index(folder)
    order = make_order(DataConfig(order="blocks", streams=STREAMS, window=64), index, 0)
    own = range(rank * STREAMS // 2, (rank + 1) * STREAMS // 2)
    return {index.shards[number].name for number in shards_ahead(order, 0, own, order.segment)}


def shards_needed(folder, rank):
    """Of those, the shards that the images of the run lie in."""
    index = read_index(folder)
    order = make_order(DataConfig(order="blocks", streams=STREAMS, window=64), index, 0)
    slots = np.arange(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    numbers = [locate(index, samples_at(order, seen, slots, BATCH))[0] for seen in range(0, IMAGES, BATCH)]
    return {index.shards[number].name for number in np.unique(numbers)}


def test_from_s3_each_machine_fetches_its_own_shards_and_trains_as_from_a_disk(shards, tmp_path, from_disk):
    if not shutil.which("moto_server"):  # from an environment of its own, as it and s3fs pull botocore to and fro
        pytest.skip("needs moto's S3 server on the PATH: pip install 'moto[s3]' flask flask-cors")
    with s3(shards) as (url, environment):
        machines = Machines(tmp_path, 2, arguments(url, tmp_path / "run", IMAGES, **BLOCKS), environment)
        ended = machines.end()
    assert [code for code, *_ in ended] == [0, 0], ended
    assert differing(tmp_path / "run", from_disk(2)) == []
    fetched = [machines.fetched(rank) for rank in range(2)]
    for rank in range(2):
        assert fetched[rank].keys() <= shards_of(shards, rank)
    assert len(fetched[0].keys() & fetched[1].keys()) <= 2, "at most one shared at each of the two borders"
    line = json.loads((tmp_path / "run" / "timing.jsonl").read_text().splitlines()[-1])
    told = line["fetched_mb"]
    assert line["fetched_mb_epoch"] == told, "the run is less than an epoch long"
    for rank, (mb, sizes) in enumerate(zip(told, fetched, strict=True)):
        needed = {name: sizes[name] for name in shards_needed(shards, rank)}
        # What is fetched ahead of the last step may still be on its way when its line is written.
        assert sum(needed.values()) <= round(mb * 1e6) <= sum(sizes.values())


@pytest.mark.slow
def test_over_https_a_small_cache_is_kept_to(shards, tmp_path, from_disk, nginx):
    sizes = [shard.bytes for shard in read_index(shards).shards]
    limit = 9 * max(sizes)  # what two windows of four streams need
    argv = arguments(nginx.url, tmp_path / "run", IMAGES, **BLOCKS, data__cache_gb=limit / 1e9)
    with nginx.serving():
        machines = Machines(tmp_path, 1, argv, nginx.environment)
        ended = machines.end()
    assert ended[0][0] == 0, ended
    assert differing(tmp_path / "run", from_disk(1)) == []
    assert 0 < sum(machines.fetched(0).values()) <= limit
    tars = [name for status, name in nginx.asked() if status == 200 and name.endswith(".tar")]
    assert len(tars) == len(set(tars)), "each shard comes once"


FAULTS = ("500", "reset", "half")


@contextmanager
def spoiling(folder, name, fault):
    """The rule for nginx by which one shard does not come."""
    with halving(folder) as port:
        rule = {
            "500": "return 500;",
            "reset": "return 444;",
            "half": f"proxy_pass http://127.0.0.1:{port}; proxy_buffering off;",
        }[fault]
        yield f"location = /{name} {{ {rule} }}"


@pytest.mark.parametrize("fault", one_a_day(FAULTS))
def test_a_server_that_recovers_costs_some_seconds(shards, tmp_path, from_disk, nginx, fault):
    broken = sorted(shards_of(shards, 0) & shards_of(shards, 1) or shards_of(shards, 0))[0]
    size = next(shard.bytes for shard in read_index(shards).shards if shard.name == broken)
    with spoiling(shards, broken, fault) as rule, nginx.serving(rule):
        machines = Machines(tmp_path, 1, arguments(nginx.url, tmp_path / "run", IMAGES, **BLOCKS), nginx.environment)
        limit = time.monotonic() + 100
        while not any(name == broken for _, name in nginx.asked()):
            assert time.monotonic() < limit
            time.sleep(0.05)
        nginx.reload()
        ended = machines.end()
    assert ended[0][0] == 0, ended
    tries = [(status, sent) for status, sent, name in nginx.answers() if name == broken]
    assert tries[0] == {"500": (500, tries[0][1]), "reset": (444, 0), "half": (200, size // 2)}[fault]
    assert tries[-1] == (200, size)
    assert differing(tmp_path / "run", from_disk(1)) == []


def test_an_outage_of_the_whole_server_leaves_nothing_out(shards, tmp_path, from_disk, nginx):
    changes = BLOCKS | {"data.on_error": "skip", "data.skip_budget": 0.2}
    with nginx.serving():
        machines = Machines(tmp_path, 1, arguments(nginx.url, tmp_path / "run", IMAGES, **changes), nginx.environment)
        limit = time.monotonic() + 100
        for rules, enough in (("location / { return 500; }", lambda asked: asked), ("", lambda asked: refused(asked) >= 12)):
            while not enough(nginx.asked()):
                assert time.monotonic() < limit
                time.sleep(0.05)
            nginx.reload(rules)
        ended = machines.end()
    assert ended[0][0] == 0, ended
    assert f"waiting for {nginx.url}: " in ended[0][2]
    assert "left out" not in ended[0][2]
    assert differing(tmp_path / "run", from_disk(1)) == []


def refused(asked):
    """How often a shard was asked for in vain, at most: four times at once is all that is done without the index."""
    names = [name for status, name in asked if status == 500]
    return max(map(names.count, names), default=0)


def prescribed(folder, lost):
    """The images of each step by the rule: in a slot whose own is lost, one that its position draws of the same stream."""
    index, slots, steps = read_index(folder), np.arange(BATCH), []
    order = make_order(DataConfig(order="blocks", streams=STREAMS, window=64), index, 0)
    number = [shard.name for shard in index.shards].index(lost)
    own = [on_layout(order, np.zeros(order.segment, int), s * order.segment + np.arange(order.segment)) for s in range(STREAMS)]
    for seen in range(0, IMAGES, BATCH):
        samples = samples_at(order, seen, slots, BATCH)
        gone = locate(index, samples)[0] == number
        for attempt in count():
            left = np.flatnonzero(locate(index, samples)[0] == number)
            if not len(left):
                break
            samples[left] = substitutes(order, seen, left, BATCH, attempt)
        for slot in np.flatnonzero(gone):
            assert samples[slot] in own[slot // (BATCH // STREAMS)]
        steps.append(samples.tolist())
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_that_does_not_come_is_named_or_left_out_alike(tmp_path, fault):
    """The images of every step are those of the rule, on one machine and on two, and each has its own label."""
    if not nginx_is_here():
        pytest.skip("needs nginx and openssl (Debian: apt install nginx-light openssl)")
    folder = tmp_path / "shards"
    numbered.make(folder, SAMPLES, 70)
    nginx, lost = Nginx(folder, tmp_path / "nginx"), sorted(shards_of(folder, 0))[0]
    expected = prescribed(folder, lost)
    with spoiling(folder, lost, fault) as rule, nginx.serving(rule):
        for machines in (1, 2):
            run = tmp_path / f"skip{machines}"
            argv = arguments(nginx.url, run, IMAGES, **BLOCKS, data__on_error="skip", data__skip_budget=0.2)
            ended = Machines(tmp_path / f"machines{machines}", machines, argv, nginx.environment, WATCHED).end()
            assert [code for code, *_ in ended] == [0] * machines, ended
            left_out = {line for _, _, errors in ended for line in re.findall("left out: .*", errors)}
            assert left_out
            assert all(lost in line for line in left_out)
            seen = [json.loads(Path(f"{run}.seen.{rank}").read_text()) for rank in range(machines)]
            assert [list(chain(*parts)) for parts in zip(*seen, strict=True)] == expected
        argv = arguments(nginx.url, tmp_path / "fail", IMAGES, **BLOCKS)
        ((code, _, errors),) = Machines(tmp_path / "fails", 1, argv, nginx.environment).end()
    assert code == 2
    (line,) = error_lines(errors)
    assert f"{nginx.url}/{lost} cannot be fetched, 4 times tried: " in line


@pytest.mark.slow
def test_a_slow_server_is_waited_for(shards, tmp_path, from_disk, nginx):
    slow = sorted(shards_of(shards, 0))[0]
    seconds = 8
    rate = next(shard.bytes for shard in read_index(shards).shards if shard.name == slow) // seconds
    with nginx.serving(f"location = /{slow} {{ limit_rate {rate}; }}"):
        argv = arguments(nginx.url, tmp_path / "run", IMAGES, **BLOCKS)
        ended = Machines(tmp_path, 1, argv, nginx.environment).end()
    assert ended[0][0] == 0, ended
    assert differing(tmp_path / "run", from_disk(1)) == []
    assert [status for status, name in nginx.asked() if name == slow] == [200]
