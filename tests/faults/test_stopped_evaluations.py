"""A notice or a mistake in the middle of an evaluation: it costs no step, and the evaluation is made again."""

import itertools
import json
import os
import signal

import pytest
import torch

from helpers.daily import one_a_day
from helpers.runs import arguments, command, configured, contents, error_lines, newest
from helpers.worlds import run_world
from scalegan.errors import UserError
from scalegan.sampling import BLOCK

pytestmark = pytest.mark.faults


EVALUATED = {
    "evaluation__every": 32 * 4,
    "evaluation__batch": 8,
    "evaluation__samples": 4 * BLOCK,  # two for each of two processes, as a notice is looked at between them
    "log__snapshots": 32 * 4,
    "ema__power": "[0.1]",
}


def evaluating(config, at, disturb):
    """Training with evaluations by features that cost nothing; `disturb` is called in the first pass of the one at `at`."""
    from torch import nn

    from scalegan import outputs, train
    from scalegan.evaluation import evaluator
    from scalegan.evaluation.features import Extractor

    now = []

    class Areas(nn.Module):
        num_features, cpu_batch, resize = 48, 8, "none"

        def forward(self, images):
            if now == [at]:
                now.clear()
                disturb()
            return nn.functional.adaptive_avg_pool2d(images.float() / 64, 4).flatten(1)

    def noted(self, ema, images_seen, evaluate=outputs.Outputs.evaluate):
        now[:] = [images_seen]
        return evaluate(self, ema, images_seen)

    made = Extractor("lite0", Areas(), "no weights", torch.device("cpu"), 8)
    evaluator.load_extractor = lambda config, device, team: made
    outputs.Outputs.evaluate = noted
    outputs.Outputs.finished = lambda self, images_seen: self.say(f"done: {images_seen}")
    return train.train(config)


def told_in_an_evaluation(config, at, rank):
    def tell_this_process():
        if int(os.environ.get("RANK", "0")) == rank:
            os.kill(os.getpid(), signal.SIGUSR1)

    return evaluating(config, at, tell_this_process)


def mistaken_in_an_evaluation(config, at, rank):
    def fail():
        if int(os.environ.get("RANK", "0")) == rank:
            raise UserError("images have NaN in them")

    return evaluating(config, at, fail)


@pytest.fixture(scope="module")
def evaluated(shards, tmp_path_factory):
    """What a run with evaluations leaves that nobody disturbed, by the number of processes."""
    made = {}

    def run(processes):
        if processes not in made:
            folder = tmp_path_factory.mktemp("evaluated")
            config = configured(shards, folder / "run", 32 * 10, **EVALUATED)
            ended = run_world(folder, processes, told_in_an_evaluation, config, None, 0)
            assert [e.value for e in ended] == [True] * processes, ended
            made[processes] = all_but_seconds(folder / "run")
        return made[processes]

    return run


def all_but_seconds(run):
    left = contents(run)
    records = [json.loads(line) | {"seconds": 0} for line in left.pop("evaluations.jsonl").splitlines()]
    state = json.loads((newest(run) / "manifest.json").read_text())["state"]
    return left, records, state["best"], state["done"]


NOTICE, MISTAKE = told_in_an_evaluation, mistaken_in_an_evaluation
AT = {"the first": 32 * 4, "another": 32 * 8, "of the last pass": 32 * 10}


def cases():
    for how, at, processes in itertools.product((NOTICE, MISTAKE), AT, (1, 2)):
        words = "notice" if how is NOTICE else "mistake"
        yield pytest.param(how, AT[at], processes, id=f"{words}-{at}-{processes}")


@pytest.mark.distributed
@pytest.mark.parametrize(("how", "at", "processes"), one_a_day(cases()))
def test_what_comes_in_an_evaluation_costs_no_step_and_it_is_made_again(shards, tmp_path, evaluated, how, at, processes):
    rank = processes - 1
    config = configured(shards, tmp_path / "run", 32 * 10, **EVALUATED)
    stopped = run_world(tmp_path, processes, how, config, at, rank)
    notice = how is NOTICE
    if notice:
        assert [(e.value, e.exitcode) for e in stopped] == [(False, 0)] * processes, stopped
    else:
        assert [str(e.value) for e in stopped] == ["images have NaN in them"] * processes, stopped
    assert (tmp_path / "run" / "requeue").exists() == notice
    assert int(newest(tmp_path / "run").name) == at
    again = run_world(tmp_path, processes, told_in_an_evaluation, config, None, 0)
    assert [e.value for e in again] == [True] * processes, again
    assert not (tmp_path / "run" / "requeue").exists()
    ours, theirs = all_but_seconds(tmp_path / "run"), evaluated(processes)
    assert ours[1:] == theirs[1:]
    assert ours[0].keys() == theirs[0].keys()
    assert [name for name in theirs[0] if ours[0][name] != theirs[0][name]] == []


def without_weights(argv):
    """Process 1 has another file where the others have their weights, as on a machine with a damaged copy."""
    from scalegan.evaluation import weights

    def read_checked(path, sha256):
        raise UserError(f"weights {path} are not the expected file")

    if os.environ["RANK"] == "1":
        weights.read_checked = read_checked
    return command(argv)


@pytest.mark.distributed
def test_weights_that_one_process_alone_cannot_read_are_told_once_and_cost_no_step(shards, tmp_path):
    ended = run_world(tmp_path, 2, without_weights, arguments(shards, tmp_path / "run", 128, evaluation__every=64))
    assert [e.value for e in ended] == [2, 2], ended
    (line,) = [line for e in ended for line in error_lines(e.stderr)]
    assert "are not the expected file" in line
    assert int(newest(tmp_path / "run").name) == 64
