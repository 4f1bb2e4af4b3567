"""Held-out images before the critic of one and of two processes: the same scores."""

import pytest

from helpers.runs import configured, metrics, training
from helpers.shards import make_shards
from helpers.worlds import run_world

pytestmark = pytest.mark.distributed

CASES = {
    "batch norm": {"model.critic_norm": "batch"},
    "norm groups over processes": {"model.critic_norm": "batch", "model.norm_group": 32},
    "rounds": {"model.critic_norm": "none", "train.accumulate": 2},
}


@pytest.mark.parametrize("case", ["batch norm", *(pytest.param(c, marks=pytest.mark.slow) for c in list(CASES)[1:])])
def test_scores_do_not_depend_on_the_number_of_processes(shards, tmp_path, case):
    make_shards(tmp_path / "held_out", 70, seed=1)
    lines = []
    for processes in (1, 2):
        run = tmp_path / f"{processes}"
        changes = CASES[case] | {"data.held_out": tmp_path / "held_out", "log.samples": 64}
        ended = run_world(tmp_path, processes, training, configured(shards, run, 128, **changes))
        assert [e.exitcode for e in ended] == [0] * processes, ended
        lines.append(metrics(run))
    assert len(lines[0]) == 2
    for one, two in zip(*lines, strict=True):
        for name in ("logits/train", "logits/held_out", "logits/generated", "accuracy/train", "accuracy/held_out"):
            # an accuracy is a count of 64, in which rounding may move one
            assert two[name] == pytest.approx(one[name], abs=1 / 60 if name.startswith("accuracy") else 1e-4), name
        for name in ("steepness/real", "steepness/fake"):
            # in rounds the generator's batch norm has met other images together, and the critic other fakes
            assert two[name] == pytest.approx(one[name], rel=1e-2 if case == "rounds" else 1e-3), name
