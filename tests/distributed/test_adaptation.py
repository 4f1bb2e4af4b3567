"""Adaptive augmentation: the same probability on every process and on any number of them, and where it was after a restart."""

import signal

import numpy as np
import pytest

from helpers.runs import FULL, configured, contents, in_float64, metrics, stopped_training, tensors, training
from helpers.worlds import run_world

pytestmark = pytest.mark.distributed

IMAGES = 32 * 14
# A critic that learns fast, so that p moves; it is adjusted after 3, 6, 9 and 12 steps, and at the stop some signs wait.
ADAPTIVE = {"augment.pipe": "photo", "augment.target": 0.05, "augment.every": 3, "augment.speed": 384, "augment.p": 1}
SAVED = {"log.checkpoint": 128, "log.samples": 192, "log.keep": 1, "optim.lr_d": 2e-3, "optim.warmup": 0}
CHANGES = {name.replace(".", "__"): value for name, value in (FULL | ADAPTIVE | SAVED).items()}


def traced(config):
    """`training` in float64, one round a step; what p was on this process after each step."""
    from scalegan.adaptive import Adaptive

    in_float64()
    found, after = [], Adaptive.after

    def recorded(self, steps):
        after(self, steps)
        found.append(self.p.item())

    Adaptive.after = recorded
    assert training(config)
    return found


def test_p_is_the_same_on_all_processes_and_for_any_number_of_them(shards, tmp_path):
    worlds = {}
    for processes in (1, 2):
        config = configured(shards, tmp_path / str(processes), IMAGES, **CHANGES | {"train__accumulate": 1})
        worlds[processes] = [ended.value for ended in run_world(tmp_path, processes, traced, config)]
    (expected,) = worlds[1]
    assert len(set(expected)) > 2, "p did not move"
    assert worlds[2] == [expected, expected]
    for name in ("generator", "critic"):
        one, two = (tensors(tmp_path / str(n), name) for n in (1, 2))
        for key, values in one.items():
            np.testing.assert_allclose(two[key], values, atol=1e-10, rtol=0, err_msg=key)
    assert [line["augment/p"] for line in metrics(tmp_path / "2")] == [line["augment/p"] for line in metrics(tmp_path / "1")]


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_stopped_run_goes_on_with_its_p_and_its_signs(shards, tmp_path, processes):
    reference = configured(shards, tmp_path / "reference", IMAGES, **CHANGES)
    command = configured(shards, tmp_path / "run", IMAGES, **CHANGES)
    ended = run_world(tmp_path, processes, training, reference)
    ended += run_world(tmp_path, processes, stopped_training, command, 0, signal.SIGTERM, 32 * 6)
    assert tensors(tmp_path / "run", "augment")["signs"][1] > 0, "no signs wait for the next adjustment"
    ended += run_world(tmp_path, processes, training, command)
    assert [e.value for e in ended] == [True] * processes + [False] * processes + [True] * processes, ended
    ours, theirs = contents(tmp_path / "run"), contents(tmp_path / "reference")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert tensors(tmp_path / "run", "augment")["p"] > 0
    assert all(-1 <= line["sign/real"] <= 1 for line in metrics(tmp_path / "run"))
