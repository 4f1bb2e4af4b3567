"""Gradients that are no numbers: all processes skip the step together, and too many in a row end the run."""

import os
import re
import signal

import numpy as np
import pytest
import torch

from helpers.daily import one_a_day
from helpers.runs import arguments, command, configured, error_lines, metrics, newest, tensors, training
from helpers.worlds import run_world
from scalegan import settings

pytestmark = pytest.mark.faults

WORLDS = [(1, 0), (2, 1)]
"""Processes, and the one of them whose gradients are broken."""


def poison(network, rank, first, last):
    """Make one gradient of the generator NaN, or one of the critic infinite, on process `rank` in the steps from first to last,
    before they are reduced."""
    from scalegan.steps import Game

    build, step = Game.__init__, Game._step

    def with_hook(self, *arguments):
        build(self, *arguments)
        self.steps_made = {"generator": 0, "critic": 0}
        parameter = list(getattr(self, f"bare_{network}").parameters())[1]

        def nan(gradient):
            here = int(os.environ.get("RANK", "0")) == rank and self.primed and first <= self.steps_made[network] <= last
            return torch.full_like(gradient, torch.inf if network == "critic" else torch.nan) if here else gradient

        self.primed = False
        parameter.register_hook(nan)

    def counted(self, optimizer, *arguments):
        result = step(self, optimizer, *arguments)
        self.steps_made["generator" if optimizer is self.opt_g else "critic"] += 1
        return result

    def prime(self, plain=Game.prime):
        plain(self)
        self.primed = True

    Game.__init__, Game._step, Game.prime = with_hook, counted, prime


def poisoned(config, network, rank, first, last):
    poison(network, rank, first, last)
    return training(config)


def poisoned_command(argv, rank, last):
    poison("critic", rank, 4, last)
    return command(argv)


@pytest.mark.distributed
@pytest.mark.parametrize(("network", "processes", "rank"), one_a_day((n, *w) for n in ("generator", "critic") for w in WORLDS))
def test_a_step_with_nan_on_one_process_is_skipped_on_all(shards, tmp_path, network, processes, rank):
    config = configured(shards, tmp_path / "run", 32 * 8, ema__half_life=64)
    ended = run_world(tmp_path, processes, poisoned, config, network, rank, 2, 3)
    assert [e.value for e in ended] == [True] * processes, ended
    assert [line["skipped_steps"] for line in metrics(tmp_path / "run")] == [0, 2, 0, 0]
    assert [line["skipped_in_a_row"] for line in metrics(tmp_path / "run")] == [0, 2, 0, 0]
    for part in ("generator", "critic", "ema"):
        assert all(np.isfinite(values).all() for values in tensors(tmp_path / "run", part).values())
    counts = {part: tensors(tmp_path / "run", f"opt_{part[0]}") for part in ("generator", "discriminator")}
    skipping = "generator" if network == "generator" else "discriminator"
    for part, moments in counts.items():
        assert {float(v) for name, v in moments.items() if name.endswith(".step")} == {6.0 if part == skipping else 8.0}


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("last", "every", "processes", "rank"),
    one_a_day(
        pytest.param(*when, *world, id=f"{words}-{world[0]}")
        for words, when in {"for good": (10_000, 64), "recovered before the next line": (8, 32 * 20)}.items()
        for world in WORLDS
    ),
)
def test_too_many_in_a_row_stop_the_run_in_one_line(shards, tmp_path, processes, rank, last, every):
    argv = arguments(shards, tmp_path / "run", 32 * 40, train__nonfinite_limit=5, log__checkpoint=64, log__every=every)
    ended = run_world(tmp_path, processes, poisoned_command, argv, rank, last)
    assert [e.value for e in ended] == [2] * processes, ended
    (line,) = error_lines(ended[0].stderr)
    told = r"gradients were not finite in 5 steps in a row up to image 288 \(critic\.discriminator\.layers\.2\.weight\): "
    assert re.search(told, line)
    assert all(not error_lines(e.stderr) for e in ended[1:])
    assert all(np.isfinite(values).all() for values in tensors(tmp_path / "run", "generator").values())


def poisoned_and_told(argv, rank):
    """Told to stop in the step after the last poisoned one, before the next line of metrics."""
    from scalegan.steps import Game

    poison("critic", rank, 4, 8)
    step = Game.generator_step

    def generator_step(self, reals, images_seen):
        if images_seen == 32 * 9:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, reals, images_seen)

    Game.generator_step = generator_step
    return command(argv)


@pytest.mark.distributed
@pytest.mark.parametrize(("processes", "rank"), one_a_day(WORLDS))
def test_after_too_many_in_a_row_nothing_is_saved_that_could_not_go_on(shards, tmp_path, processes, rank):
    often = {"train__nonfinite_limit": 5, "log__checkpoint": 96, "log__every": 32 * 20}
    argv = arguments(shards, tmp_path / "run", 32 * 12, **often)
    ended = run_world(tmp_path, processes, poisoned_and_told, argv, rank)
    assert [e.value for e in ended] == [2] * processes, ended
    assert "gradients were not finite in 5 steps in a row up to image 288 " in error_lines(ended[0].stderr)[0]
    assert not (tmp_path / "run" / "requeue").exists()
    assert int(newest(tmp_path / "run").name) == 192
    assert error_lines(ended[0].stderr)[0].endswith("and go on by --override_resume; the last good checkpoint is kept")
    other = settings.parse([*argv, "--optim.lr_g=0.0001", "--override_resume"]).config
    again = run_world(tmp_path, processes, training, other)
    assert [e.value for e in again] == [True] * processes, again
