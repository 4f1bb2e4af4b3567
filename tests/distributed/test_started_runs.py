"""A run that starts from another one, with the first stage of its critic frozen: on one process, on two, and interrupted."""

import re
import shutil
import signal

import numpy as np
import pytest

from helpers.runs import FULL, configured, contents, in_float64, newest, stopped_training, tensors, training
from helpers.worlds import run_world
from scalegan import run
from scalegan.errors import UserError

pytestmark = pytest.mark.distributed

IMAGES = 32 * 6
FROZEN = "discriminator.layers.0.weight"
CHANGES = {name.replace(".", "__"): value for name, value in FULL.items()} | {"train__accumulate": 1, "optim__warmup": 0}


@pytest.fixture(scope="module")
def source(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    ended = run_world(folder, 1, training, configured(shards, folder / "run", 64, **CHANGES | {"train__seed": 5}))
    assert [e.value for e in ended] == [True], ended
    return folder / "run"


def command(shards, folder, source):
    more = {"init_from": source, "optim__freeze_critic": 1}
    return configured(shards, folder / "run", IMAGES, **CHANGES | more)


@pytest.fixture(scope="module")
def runs(shards, source, tmp_path_factory):
    """Undisturbed runs by the number of processes."""
    made = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"from{processes}")
        ended = run_world(folder, processes, training, command(shards, folder, source))
        assert [e.value for e in ended] == [True] * processes, ended
        made[processes] = folder / "run"
    return made


def test_the_frozen_stage_stays_and_the_others_learn(runs, source):
    before = tensors(source, "critic")
    for processes in (1, 2):
        after = tensors(runs[processes], "critic")
        assert [name for name in after if np.array_equal(after[name], before[name])] == [
            name for name in after if name.startswith("discriminator.layers.0.")
        ]
        assert FROZEN in after


def in_double(config):
    in_float64()
    return training(config)


def test_two_processes_end_where_one_does(shards, source, tmp_path):
    """In float64, where nothing but rounding is left between them."""
    folders = [tmp_path / str(processes) for processes in (1, 2)]
    for folder, processes in zip(folders, (1, 2), strict=True):
        folder.mkdir()
        ended = run_world(folder, processes, in_double, command(shards, folder, source))
        assert [e.value for e in ended] == [True] * processes, ended
    for network in ("critic", "generator"):
        one, two = (tensors(folder / "run", network) for folder in folders)
        for name, values in one.items():
            np.testing.assert_allclose(two[name], values, atol=1e-10, rtol=0, err_msg=name)


def test_what_it_started_from_is_told_and_kept(runs, source):
    log = (runs[1] / "log.txt").read_text()
    assert f"networks from {newest(source)} (64 images seen)" in log
    assert re.search(r"  \S+: \d+ images of 16x16 in \S+, fp32 on cpu, first figures at 64 images\n", log)
    record = run.started_from(runs[1])
    assert record is not None
    assert record["checkpoint"] == str(newest(source))


@pytest.mark.parametrize("processes", [1, 2])
def test_stopped_and_continued_it_ends_with_the_same_bytes_though_the_other_run_has_gone(
    shards, source, runs, tmp_path, processes
):
    lent = shutil.copytree(source, tmp_path / "lent")
    config = command(shards, tmp_path, lent)
    stopped = run_world(tmp_path, processes, stopped_training, config, 0, signal.SIGTERM, 32)
    assert [e.value for e in stopped] == [False] * processes, stopped
    shutil.rmtree(lent)
    again = run_world(tmp_path, processes, training, config)
    assert [e.value for e in again] == [True] * processes, again
    ours, theirs = contents(tmp_path / "run"), contents(runs[processes])
    assert [name for name in ours | theirs if ours.get(name) != theirs.get(name)] == []


def test_what_does_not_fit_is_told_before_a_folder_is_made(shards, source, tmp_path):
    config = configured(shards, tmp_path / "run", IMAGES, **CHANGES | {"init_from": source, "model__width": 4})
    ended = run_world(tmp_path, 2, training, config)
    assert [type(e.value) for e in ended] == [UserError] * 2
    assert "model.width: 8 -> 4" in str(ended[0].value)
    assert not (tmp_path / "run").exists()
