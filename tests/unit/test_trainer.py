"""The loop around its steps: what is made when, and once, also where it was given up on the way."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import make_config, make_shards

from scalegan import checkpoint, outputs
from scalegan.checkpoint import folders, latest, number
from scalegan.distributed import make_accelerator
from scalegan.errors import GivenUp, UserError
from scalegan.trainer import Trainer
from scalegan.watchdog import Watchdog


class Lost(Exception):
    """Stands for the death of the process."""


@pytest.fixture
def make_trainer(tmp_path, monkeypatch):
    """Trainers of one run of 48 images in steps of 8, evaluated every 16, whose evaluations find the values that are given,
    or meet the errors; `lost_at` images it ends without a word."""
    torch.set_num_threads(1)
    index = make_shards(tmp_path / "shards", samples=24)
    rare = {"every": 8, "samples": 10_000, "checkpoint": 10_000, "keep": 1}
    config = make_config(
        Path(index.root), tmp_path / "run", train={"images": 48}, log=rare, evaluation={"every": 16, "metrics": ""}
    )
    monkeypatch.setattr("scalegan.plots.plot_run", lambda run_dir: [])

    def make(*found: float | Exception, lost_at: int = -1) -> Trainer:
        remaining = iter(found)

        def evaluate(self, ema, images_seen):
            value = next(remaining)
            if isinstance(value, Exception):
                raise value
            record = {"fd_lite0": value, "images_seen": images_seen}
            self.tracker.record(images_seen, record)
            return record

        monkeypatch.setattr(outputs.Outputs, "evaluate", evaluate)
        AcceleratorState._reset_state(True)
        trainer = Trainer(config, make_accelerator(config.train), index, None, Watchdog(0, Path(), 0))
        fetch = trainer.fetch

        def lost():
            if trainer.clock.images_seen == lost_at:
                raise Lost
            return fetch()

        monkeypatch.setattr(trainer, "fetch", lost)
        return trainer

    return make


def recorded(trainer: Trainer) -> list[tuple[int, float]]:
    lines = (trainer.run_dir / "evaluations.jsonl").read_text().splitlines()
    return [(record["images_seen"], record["fd_lite0"]) for record in map(json.loads, lines)]


def test_the_wish_to_be_requeued_names_the_attempt_of_the_job(make_trainer, monkeypatch):
    monkeypatch.setenv("SCALEGAN_ATTEMPT", "7.1")
    first = make_trainer(GivenUp("told"))
    assert not first.train()
    assert (first.run_dir / "requeue").read_text() == "16 7.1\n"


def test_an_evaluation_that_was_given_up_is_recorded_once_though_the_run_dies_after_it_was_made_again(make_trainer):
    first = make_trainer(3.0, GivenUp("told"))
    assert not first.train()
    assert (first.run_dir / "requeue").read_text() == "32\n"
    assert recorded(first) == [(16, 3.0)]
    for _ in range(2):  # no checkpoint is due after an evaluation that is no better
        with pytest.raises(Lost):
            make_trainer(4.0, lost_at=32).train()
        assert recorded(first) == [(16, 3.0), (32, 4.0)]
    last = make_trainer(4.0, 2.0)
    assert last.train()
    assert recorded(last) == [(16, 3.0), (32, 4.0), (48, 2.0)]


@pytest.mark.parametrize("error", [GivenUp("told"), UserError("metric kid needs more")], ids=["notice", "mistake"])
@pytest.mark.parametrize("at", [16, 32, 48])
def test_the_checkpoint_before_an_evaluation_that_is_to_come_does_not_name_it(make_trainer, at, error):
    before = [5.0, 4.0, 3.0][: at // 16 - 1]
    trainer = make_trainer(*before, error)
    if isinstance(error, GivenUp):
        assert not trainer.train()
    else:
        with pytest.raises(UserError, match="metric kid needs more"):
            trainer.train()
    found, _ = latest(trainer.run_dir)
    assert found is not None
    assert found.images_seen == at
    assert at not in (found.state["done"].get("evaluation"), found.state["done"].get("checkpoint"))
    resumed = make_trainer(*[5.0, 4.0, 3.0][at // 16 - 1 :])
    assert resumed.clock.images_seen == at
    assert resumed.train()
    found, _ = latest(trainer.run_dir)
    assert found is not None
    assert found.state["done"] == {"samples": 48, "evaluation": 48, "checkpoint": 48}
    assert found.state["best"] == {"metric": "fd_lite0", "value": 3.0, "images_seen": 48}
    assert recorded(resumed) == [(16, 5.0), (32, 4.0), (48, 3.0)]


def test_no_checkpoint_makes_room_for_that_of_an_evaluation_that_failed(make_trainer):
    first = make_trainer(1.0, GivenUp("told"))
    first.train()
    with pytest.raises(UserError, match="NaN"):
        make_trainer(2.0, UserError("images have NaN in them")).train()
    assert [number(path) for path in folders(first.run_dir)] == [48, 32, 16]


def test_nothing_is_made_again_on_the_first_turn_after_a_resume(make_trainer):
    with pytest.raises(Lost):
        make_trainer(3.0, 2.0, lost_at=40).train()
    resumed = make_trainer(1.0)
    assert resumed.clock.images_seen == 32, "where the best was found"
    assert resumed.train()
    assert recorded(resumed) == [(16, 3.0), (32, 2.0), (48, 1.0)]


def test_grids_of_what_a_run_takes_back_are_not_shown_as_its_own(make_trainer, tmp_path):
    """Of a run that ended before its first line and begins anew, perhaps on other images; and of one that goes on from before
    them, perhaps to another end."""
    samples = tmp_path / "run" / "samples"
    samples.mkdir(parents=True)
    for name in ("real.png", "000000040.png", "mine.png", "000099.png"):
        (samples / name).write_bytes(b"of other images")
    first = make_trainer(1.0, 2.0, 3.0)
    assert first.train()
    assert sorted(path.name for path in samples.iterdir()) == ["000000048.png", "000099.png", "mine.png", "real.png"]
    assert (samples / "real.png").read_bytes() != b"of other images"
    shutil.rmtree(first.run_dir / "checkpoints" / "000000048")
    with pytest.raises(Lost):
        make_trainer(lost_at=16).train()
    assert sorted(path.name for path in samples.iterdir()) == ["000099.png", "mine.png", "real.png"]


def test_a_notice_asks_for_the_run_again_though_an_old_checkpoint_cannot_be_deleted(make_trainer, monkeypatch, capsys):
    trainer, delete = make_trainer(3.0, 2.0), shutil.rmtree

    def rmtree(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        delete(path, ignore_errors)

    def told(images_seen):
        if images_seen == 40:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr(trainer.outputs, "advance", told)
    assert not trainer.train()
    assert (trainer.run_dir / "requeue").read_text() == "40\n"
    said = capsys.readouterr().out
    assert "an old checkpoint could not be deleted" in said
    assert "NOT saved" not in said
    assert [number(path) for path in folders(trainer.run_dir)] == [40, 32, 16]


def test_a_stop_that_could_not_be_saved_is_no_success(make_trainer, monkeypatch, capsys):
    """Jobs may wait for that of this one."""
    trainer = make_trainer(3.0, 2.0)

    def save(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def told(images_seen):
        if images_seen == 40:
            monkeypatch.setattr(checkpoint, "save", save)
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(trainer.outputs, "advance", told)
    with pytest.raises(UserError, match=r"^stopped at 40 images on request, NOT saved: the same command goes on from the"):
        trainer.train()
    assert "checkpoint at 40 images was NOT saved: [Errno 28] No space left on device" in capsys.readouterr().out
    assert not (trainer.run_dir / "requeue").exists()
    assert [number(path) for path in folders(trainer.run_dir)] == [32]
